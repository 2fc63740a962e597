// The LOG penalty of a pixel's difference a by its squared norm over the channels:
//     log(sqrt(||a||^2 + epsilon) + ||a||),   derivative by ||a||: 1 / sqrt(||a||^2 + epsilon).
// Source: seed 003, eq. 8.
#pragma once

#include "unblemish/elementary.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

UNBLEMISH_HD float log_penalty_value(float square, float epsilon) {
  return log_of_positive(sqrtf(square + epsilon) + sqrtf(square));
}

// What a is multiplied with in the derivative by a; 0 where a is 0. NaN passes.
UNBLEMISH_HD float log_penalty_slope(float square, float epsilon) {
  return square == 0.0f ? 0.0f : 1.0f / (sqrtf(square) * sqrtf(square + epsilon));
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
