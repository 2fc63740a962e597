// Squared Mahalanobis distance by packed rows of a lower triangular W. Source: seed 003, eq. 7.
//
// s = ||W d||^2, d s / d f = 2 W^T W d: while row i of W is at hand, t_i = W_i d adds t_i^2 to the one
// and 2 t_i W_i to the other, so that W is read once.
#pragma once

#include <cstddef>

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

// Where row i begins; the row holds i + 1 numbers.
UNBLEMISH_HD std::size_t packed_start(std::size_t row) { return row * (row + 1) / 2; }

// t_i^2, in double: sums of many of them must not lose the small ones.
UNBLEMISH_HD double whitened_square(float t) { return static_cast<double>(t) * t; }

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
