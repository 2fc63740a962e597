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

// 0 for finite x, NaN otherwise.
UNBLEMISH_HD float finite_probe(float x) { return 0.0f * x; }

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
