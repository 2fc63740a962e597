// Exponential and logarithm without branches or tables, so that loops over them are vectorised.
#pragma once

#include "unblemish/bits.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

// exp(x) for x <= 0: relative error below 2e-7; exp(0) = 1 exactly; 0 below -87; NaN passes.
//
// x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts of which the first has few enough digits for n
// times it to be exact. exp(r) = 1 + r + r^2 q(r), q the quartic of least relative error (3e-9).
UNBLEMISH_HD float exp_of_negative(float x) {
  const float kept = x < -87.0f ? -87.0f : x;
  const float shifted = kept * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds, n in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (kept - n * 0.693359375f) + n * 2.12194440e-4f;
  float q = 0.00138145406f;
  q = q * r + 0.00836874545f;
  q = q * r + 0.0416683890f;
  q = q * r + 0.166665211f;
  q = q * r + 0.499999940f;
  const float value = (q * r * r + r) + 1.0f;
  const float power = float_of((bits_of(shifted) << 23) + 0x3f800000u);
  return x < -87.0f ? 0.0f : value * power;
}

// log(x) for normal x > 0: absolute error below 1e-7 max(1, |log x|); infinity and NaN pass.
//
// x = 2^e m with m in [sqrt 1/2, sqrt 2); log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 0.172: the
// series of atanh to s^9, whose remainder is below 1e-9.
UNBLEMISH_HD float log_of_positive(float x) {
  const unsigned offset = bits_of(x) - 0x3f3504f3u;  // the bits of sqrt(1/2)
  const float e = static_cast<float>(static_cast<int>(offset) >> 23);
  const float m = float_of((offset & 0x7fffffu) + 0x3f3504f3u);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float s2 = s * s;
  const float tail = s2 * (1.0f / 3 + s2 * (1.0f / 5 + s2 * (1.0f / 7 + s2 * (1.0f / 9))));
  const float value = e * 0.693147181f + 2.0f * (s + s * tail);
  return x <= 3.40282347e38f ? value : x;
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
