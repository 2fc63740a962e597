// A register of floats, as wide as the instruction set of this copy has them. For use in tiles alone.
#pragma once

#include <cstddef>

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

#if defined(__GNUC__)

#if defined(__AVX512F__)
constexpr std::size_t kLanes = 16;
#elif defined(__AVX2__)
constexpr std::size_t kLanes = 8;
#else
constexpr std::size_t kLanes = 4;
#endif

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int LaneMask __attribute__((vector_size(kLanes * sizeof(int))));

UNBLEMISH_HD Lanes load_lanes(const float* p) {
  Lanes v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

UNBLEMISH_HD void store_lanes(float* p, Lanes v) { __builtin_memcpy(p, &v, sizeof v); }

// -1, all bits set, in the first `count` lanes.
UNBLEMISH_HD LaneMask first_lanes(std::size_t count) {
  LaneMask number;
  for (std::size_t k = 0; k < kLanes; ++k) number[k] = static_cast<int>(k);
  return number < static_cast<int>(count);
}

// Ask for the line at p, which may lie beyond the array.
UNBLEMISH_HD void prefetch(const float* p) { __builtin_prefetch(p); }

// v where the mask is set, 0 elsewhere, whatever v holds there.
UNBLEMISH_HD Lanes kept_lanes(Lanes v, LaneMask mask) { return mask ? v : Lanes{}; }

UNBLEMISH_HD bool any_less(Lanes v, float limit) {
  const LaneMask less = v < limit;
  int any = 0;
  for (std::size_t k = 0; k < kLanes; ++k) any |= less[k];
  return any != 0;
}

UNBLEMISH_HD bool any_below(Lanes a, Lanes b) {
  const LaneMask below = a < b;
  int any = 0;
  for (std::size_t k = 0; k < kLanes; ++k) any |= below[k];
  return any != 0;
}

UNBLEMISH_HD Lanes lesser(Lanes a, Lanes b) { return a < b ? a : b; }

// Sum of all lanes, by halves.
UNBLEMISH_HD float sum_lanes(Lanes v) {
  typedef float Quad __attribute__((vector_size(4 * sizeof(float))));
  Quad part[kLanes / 4];
  __builtin_memcpy(part, &v, sizeof v);
  for (std::size_t half = kLanes / 8; half > 0; half /= 2)
    for (std::size_t k = 0; k < half; ++k) part[k] += part[k + half];
  return (part[0][0] + part[0][2]) + (part[0][1] + part[0][3]);
}

#else  // scalar code, for compilers without vector types

constexpr std::size_t kLanes = 4;

struct Lanes {
  float v[kLanes];
  float operator[](std::size_t k) const { return v[k]; }
};
struct LaneMask {
  std::size_t count;
};

inline Lanes operator+(Lanes a, const Lanes& b) {
  for (std::size_t k = 0; k < kLanes; ++k) a.v[k] += b.v[k];
  return a;
}
inline Lanes operator-(Lanes a, const Lanes& b) {
  for (std::size_t k = 0; k < kLanes; ++k) a.v[k] -= b.v[k];
  return a;
}
inline Lanes operator-(Lanes a, float b) {
  for (std::size_t k = 0; k < kLanes; ++k) a.v[k] -= b;
  return a;
}
inline Lanes operator*(Lanes a, const Lanes& b) {
  for (std::size_t k = 0; k < kLanes; ++k) a.v[k] *= b.v[k];
  return a;
}
inline Lanes operator*(Lanes a, float b) {
  for (std::size_t k = 0; k < kLanes; ++k) a.v[k] *= b;
  return a;
}
inline Lanes operator*(float a, const Lanes& b) { return b * a; }
inline Lanes& operator+=(Lanes& a, const Lanes& b) { return a = a + b; }
inline Lanes load_lanes(const float* p) {
  Lanes v;
  for (std::size_t k = 0; k < kLanes; ++k) v.v[k] = p[k];
  return v;
}
inline void store_lanes(float* p, const Lanes& v) {
  for (std::size_t k = 0; k < kLanes; ++k) p[k] = v.v[k];
}
inline void prefetch(const float*) {}
inline LaneMask first_lanes(std::size_t count) { return {count}; }
inline Lanes kept_lanes(Lanes v, LaneMask mask) {
  for (std::size_t k = mask.count; k < kLanes; ++k) v.v[k] = 0.0f;
  return v;
}
inline float sum_lanes(const Lanes& v) { return (v.v[0] + v.v[2]) + (v.v[1] + v.v[3]); }
inline bool any_less(const Lanes& v, float limit) {
  bool any = false;
  for (std::size_t k = 0; k < kLanes; ++k) any |= v.v[k] < limit;
  return any;
}
inline bool any_below(const Lanes& a, const Lanes& b) {
  bool any = false;
  for (std::size_t k = 0; k < kLanes; ++k) any |= a.v[k] < b.v[k];
  return any;
}
inline Lanes lesser(Lanes a, const Lanes& b) {
  for (std::size_t k = 0; k < kLanes; ++k) a.v[k] = a.v[k] < b.v[k] ? a.v[k] : b.v[k];
  return a;
}

#endif

// The first `count` floats at p, 0 in the other lanes. `readable` floats from p on may be read.
UNBLEMISH_HD Lanes load_first(const float* p, std::size_t count, std::size_t readable) {
  if (readable >= kLanes) return kept_lanes(load_lanes(p), first_lanes(count));
  float room[kLanes] = {};
  for (std::size_t k = 0; k < count; ++k) room[k] = p[k];
  return load_lanes(room);
}

UNBLEMISH_HD std::size_t whole_lanes(std::size_t count) { return count / kLanes * kLanes; }
UNBLEMISH_HD std::size_t padded_lanes(std::size_t count) { return whole_lanes(count + kLanes - 1); }

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
