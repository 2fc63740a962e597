// Negative log-likelihood of a residual r under a Gaussian of log standard deviation s, without its constant:
//     r^2 exp(-2 s) / 2 + s,   by r: r exp(-2 s),   by s: 1 - r^2 exp(-2 s).
// Source: Dai and Wipf 2019, section 4; seed 002, section 2.1.
#pragma once

#include "unblemish/elementary.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

// exp(-2 s) for |s| < 43; 0 above, infinity below. NaN passes.
UNBLEMISH_HD float inverse_variance(float s) {
  const float power = -2.0f * s;
  const float small = exp_of_negative(power > 0.0f ? -power : power);
  return power > 0.0f ? 1.0f / small : small;
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
