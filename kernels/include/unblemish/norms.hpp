// Sum of squares, largest magnitude and finiteness, per element.
#pragma once

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

UNBLEMISH_HD double square(float x) {
  const double wide = x;
  return wide * wide;
}

UNBLEMISH_HD float magnitude(float x) { return fabsf(x); }

// Passes over NaN; the sum of squares remembers it, because a sum of squares is NaN only for NaN.
UNBLEMISH_HD float larger(float kept, float x) { return x > kept ? x : kept; }

UNBLEMISH_HD double largest_or_nan(double squared, float largest) {
  return squared != squared ? squared : static_cast<double>(largest);
}

// 0 for finite x, 1 otherwise: x - x is 0 or NaN.
UNBLEMISH_HD unsigned not_finite(float x) { return x - x == 0.0f ? 0u : 1u; }

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
