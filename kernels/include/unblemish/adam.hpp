// One element of Adam followed by projection on a box. Source: Kingma and Ba 2015, algorithm 1.
#pragma once

#include "unblemish/hd.hpp"

namespace unblemish {

// Constants of one step t >= 1, rounded once from double.
struct AdamStep {
  float beta2;
  float one_minus_beta1;
  float one_minus_beta2;
  float step_size;            // lr / (1 - beta1^t)
  float inverse_root_bias2;   // 1 / sqrt(1 - beta2^t)
  float eps;
  float lower;
  float upper;
};

inline AdamStep adam_step(long long t, double lr, double beta1, double beta2, double eps, double lower,
                          double upper) {
  const double time = static_cast<double>(t);
  return {static_cast<float>(beta2),
          static_cast<float>(1.0 - beta1),
          static_cast<float>(1.0 - beta2),
          static_cast<float>(lr / (1.0 - pow(beta1, time))),
          static_cast<float>(1.0 / sqrt(1.0 - pow(beta2, time))),
          static_cast<float>(eps),
          static_cast<float>(lower),
          static_cast<float>(upper)};
}

inline namespace UNBLEMISH_ISA {

// NaN passes both comparisons and stays.
UNBLEMISH_HD float clamp_to_box(float p, float lower, float upper) {
  const float raised = p < lower ? lower : p;
  return raised > upper ? upper : raised;
}

// Updates the moments; returns what the first is divided by.
UNBLEMISH_HD float adam_denominator(float& m, float& v, float g, const AdamStep& s) {
  m = m + s.one_minus_beta1 * (g - m);
  v = s.beta2 * v + s.one_minus_beta2 * (g * g);
  return sqrtf(v) * s.inverse_root_bias2 + s.eps;
}

UNBLEMISH_HD void adam_update(float& p, float& m, float& v, float g, const AdamStep& s) {
  const float denominator = adam_denominator(m, v, g, s);
  p = clamp_to_box(p - s.step_size * (m / denominator), s.lower, s.upper);
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
