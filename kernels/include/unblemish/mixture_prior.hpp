// Distance of a pixel to the nearest component of a mixture of Gaussians. Source: seed 003, eq. 10.
#pragma once

#include <stddef.h>

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

// Whether `distance` takes the place of the best so far. Written so that NaN does.
UNBLEMISH_HD bool is_nearer(float distance, float best) { return !(best <= distance); }

// Row `c` of the precision times n - mean. `stride`: between the channels of n.
UNBLEMISH_HD float mixture_slope(const float* n, size_t stride, const float* mean, const float* precision,
                                 size_t channels, size_t c) {
  float slope = 0.0f;
  for (size_t e = 0; e < channels; ++e) slope += precision[c * channels + e] * (n[e * stride] - mean[e]);
  return slope;
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
