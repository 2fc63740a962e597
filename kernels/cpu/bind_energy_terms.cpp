// Python bindings of the terms and the step of energy projection; see module.cpp.
#include <nanobind/stl/optional.h>

#include <optional>

#include "bindings.hpp"
#include "energy_drivers.hpp"

using namespace nb::literals;

namespace unblemish::cpu {
namespace {

using MaybeOut = std::optional<ImageOut>;

Images images_of(const Image& x) {
  return {x.shape(0), {x.shape(1), x.shape(2), x.shape(3), x.shape(2) * x.shape(3)}};
}

template <class A>
Span span_of(const std::optional<A>& a) {
  return a ? span(*a) : Span{nullptr, nullptr};
}

template <class A>
auto data_of(const std::optional<A>& a) {
  return a ? a->data() : nullptr;
}

template <class A>
bool is_one_row(const A& a, const Image& x) {
  return a.shape(0) == x.shape(0) && a.shape(1) == 1 && a.shape(2) == x.shape(2) && a.shape(3) == x.shape(3);
}

bool is_positive(double setting) { return setting > 0.0 && setting < HUGE_VAL; }

void bind_dssim(Engine& engine, Image x, Image g, PerItem scale, double data_range, long long window, double sigma,
                MaybeOut dissimilarity, MaybeOut direct, MaybeOut cotangent, PerItemOut objective) {
  require_items(x, {scale.size(), objective.size()});
  require(same_shape(x, g) && (!dissimilarity || is_one_row(*dissimilarity, x)));
  require((!direct || same_shape(x, *direct)) && (!cotangent || same_shape(x, *cotangent)));
  require(window >= 1 && window <= static_cast<long long>(kMostTaps) && window % 2 == 1);
  require(is_positive(data_range) && is_positive(sigma));
  require_apart({span(objective), span_of(dissimilarity), span_of(direct), span_of(cotangent), span(x), span(g),
                 span(scale)},
                4);
  dssim(engine, images_of(x),
        {x.data(), g.data(), scale.data(), data_of(dissimilarity), data_of(direct), data_of(cotangent),
         objective.data()},
        data_range, static_cast<std::size_t>(window / 2), sigma);
}

}  // namespace

void bind_energy_terms(nb::class_<Engine>& engine) {
  using Free = nb::call_guard<nb::gil_scoped_release>;
  engine.def("dssim", &bind_dssim, "x"_a.noconvert(), "g"_a.noconvert(), "scale"_a.noconvert(), "data_range"_a,
             "window"_a, "sigma"_a, "dissimilarity"_a.noconvert().none(), "direct"_a.noconvert().none(),
             "cotangent"_a.noconvert().none(), "objective"_a.noconvert(), Free());
}

}  // namespace unblemish::cpu
