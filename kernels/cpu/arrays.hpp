// The arrays that bindings take, and the refusals they share.
//
// The type casters refuse any other dtype, rank, memory order and read-only outputs; the checks here
// refuse sizes that do not fit and outputs that overlap. What was wrong is told by `checks`, in Python,
// which is asked only after a refusal.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace nb = nanobind;

namespace unblemish::cpu {

// An element of a float16 array.
struct Float16 {
  std::uint16_t bits;
};

}  // namespace unblemish::cpu

template <>
struct nanobind::detail::dtype_traits<unblemish::cpu::Float16> {
  static constexpr dlpack::dtype value{static_cast<std::uint8_t>(dlpack::dtype_code::Float), 16, 1};
  static constexpr auto name = const_name("float16");
};

namespace unblemish::cpu {

template <class T, class... Rank>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu, Rank...>;
using Image = Array<const float, nb::ndim<4>>;
using ImageOut = Array<float, nb::ndim<4>>;
using PerItem = Array<const float, nb::ndim<1>>;
using PerItemOut = Array<double, nb::ndim<1>>;

struct Span {
  const char* begin;
  const char* end;
};

template <class A>
Span span(const A& a) {
  const char* begin = reinterpret_cast<const char*>(a.data());
  return {begin, begin + a.nbytes()};
}

inline void require(bool fits) {
  if (!fits) throw nb::value_error("arrays do not fit");
}

// The first `outputs` of `spans` are written: none may overlap any other.
inline void require_apart(std::initializer_list<Span> spans, std::size_t outputs) {
  const Span* all = spans.begin();
  for (std::size_t i = 0; i < outputs; ++i)
    for (std::size_t j = i + 1; j < spans.size(); ++j)
      require(all[i].begin >= all[j].end || all[j].begin >= all[i].end);
}

template <class A, class B>
bool same_shape(const A& a, const B& b) {
  if (a.ndim() != b.ndim()) return false;
  for (std::size_t i = 0; i < a.ndim(); ++i)
    if (a.shape(i) != b.shape(i)) return false;
  return true;
}

inline void require_items(const Image& x, std::initializer_list<std::size_t> lengths) {
  require(x.size() > 0);
  for (const std::size_t length : lengths) require(length == x.shape(0));
}

}  // namespace unblemish::cpu
