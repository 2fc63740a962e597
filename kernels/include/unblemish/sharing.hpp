// Weights by which a pixel takes over gradients of its neighbours:
//     exp(-d^2 / sigma_space) exp(-||x_q - x_p||^2 / sigma_colour), before they are normalised.
// Source: seed 003, eqs. 13 and 14.
#pragma once

#include "unblemish/elementary.hpp"
#include "unblemish/half.hpp"

namespace unblemish {

// A weight below 2^-25 rounds to 0 in half precision, and a pixel's own weight is 1: neighbours whose
// distance alone makes their weight so small count as 0, in the table and out of it.
inline constexpr float kLargestSpace = 17.3286795f;  // 25 ln 2

inline namespace UNBLEMISH_ISA {

// space: d^2 / sigma_space. distance: squared, over the channels. NaN passes.
UNBLEMISH_HD float sharing_weight(float distance, float space, float inverse_sigma_colour) {
  return exp_of_negative(-(distance * inverse_sigma_colour) - space);
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
