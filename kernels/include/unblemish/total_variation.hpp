// Colour-coupled total variation: norms over the channels of the differences to the pixel below and to
// the right, and the derivative by one pixel. Source: seed 003, eq. 11.
#pragma once

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

// 1 / norm by its square; 0 at 0, where the derivative is taken as 0. NaN passes.
UNBLEMISH_HD float inverse_norm(float square) { return square == 0.0f ? 0.0f : 1.0f / sqrtf(square); }

// A pixel of one channel and its four neighbours; a neighbour that is missing is the pixel itself.
struct Cross {
  float centre, above, left, below, right;
};

// The inverse norms of the four differences; 0 where a neighbour is missing.
struct CrossNorms {
  float above, left, below, right;
};

UNBLEMISH_HD float variation_slope(const Cross& n, const CrossNorms& inverse) {
  return ((n.centre - n.above) * inverse.above + (n.centre - n.left) * inverse.left) -
         ((n.below - n.centre) * inverse.below + (n.right - n.centre) * inverse.right);
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
