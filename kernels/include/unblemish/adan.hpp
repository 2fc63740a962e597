// One element of Adan with a step size of its own, clipping and projection.
// Source: seed 003, eq. 15; Xie et al., 'Adan', 2024, algorithm 1.
#pragma once

#include "unblemish/adam.hpp"

namespace unblemish {

// Constants of one step t >= 1, rounded once from double.
struct AdanStep {
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float one_minus_beta3;
  float inverse_bias1;      // 1 / (1 - beta1^t)
  float slope_factor;       // beta2 / (1 - beta2^t)
  float inverse_root_bias3; // 1 / sqrt(1 - beta3^t)
  float eps;
  float clip;
  float lower;
  float upper;
  float floor;
  float has_previous;  // 0 in step 1, 1 afterwards
};

inline AdanStep adan_step(long long t, double clip, double lower, double upper, double floor, double beta1,
                          double beta2, double beta3, double eps) {
  const double time = static_cast<double>(t);
  return {static_cast<float>(1.0 - beta1),
          static_cast<float>(beta2),
          static_cast<float>(1.0 - beta2),
          static_cast<float>(1.0 - beta3),
          static_cast<float>(1.0 / (1.0 - pow(beta1, time))),
          static_cast<float>(beta2 / (1.0 - pow(beta2, time))),
          static_cast<float>(1.0 / sqrt(1.0 - pow(beta3, time))),
          static_cast<float>(eps),
          static_cast<float>(clip),
          static_cast<float>(lower),
          static_cast<float>(upper),
          static_cast<float>(floor),
          t > 1 ? 1.0f : 0.0f};
}

inline namespace UNBLEMISH_ISA {

struct AdanMoments {
  float first, slope, second, previous;
};

// The direction before the step size; updates the moments. What `previous` holds in step 1 is ignored.
UNBLEMISH_HD float adan_direction(AdanMoments& m, float gradient, const AdanStep& s) {
  const float g = clamp_to_box(gradient, -s.clip, s.clip);
  const float d = s.has_previous != 0.0f ? g - m.previous : 0.0f;
  const float ahead = g + s.beta2 * d;
  m.first = m.first + s.one_minus_beta1 * (g - m.first);
  m.slope = m.slope + s.one_minus_beta2 * (d - m.slope);
  m.second = m.second + s.one_minus_beta3 * (ahead * ahead - m.second);
  m.previous = g;
  return (m.first * s.inverse_bias1 + m.slope * s.slope_factor) / (sqrtf(m.second) * s.inverse_root_bias3 + s.eps);
}

// NaN in any argument shows in the result.
UNBLEMISH_HD float adan_move(float n, float x, float direction, float rate, const AdanStep& s) {
  const float distance = fabsf(x - n);
  const float kept = distance < s.floor ? s.floor : distance;
  return clamp_to_box(n - rate / kept * direction, s.lower, s.upper);
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
