// Weighted l2 and l1 residuals of one element: value and cotangent. Source: seed 000, eq. 1.
#pragma once

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

// w r^2, in double: r = 1e30 is finite, its square is not a float.
UNBLEMISH_HD double l2_value(float r, float w) {
  const double wide = r;
  return w * (wide * wide);
}

// d(scale w r^2)/dr
UNBLEMISH_HD float l2_cotangent(float r, float w, float twice_scale) { return (twice_scale * w) * r; }

UNBLEMISH_HD double l1_value(float r, float w) {
  return static_cast<double>(w) * fabs(static_cast<double>(r));
}

// d(scale w |r|)/dr with sign(0) = 0; NaN passes through the last branch.
UNBLEMISH_HD float l1_cotangent(float r, float w, float scale) {
  const float sign = r > 0.0f ? 1.0f : (r < 0.0f ? -1.0f : r);
  return (scale * w) * sign;
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
