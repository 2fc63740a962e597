// Squared distance to the nearest of some rows. Source: seed 003, eq. 5.
#pragma once

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

// The best row so far of one cell; chosen < 0: none yet.
struct Nearest {
  float distance;
  int chosen;
};

// The first of equals stays; where the distances are NaN, the first row does.
UNBLEMISH_HD void consider(Nearest& best, float distance, int row) {
  if (best.chosen < 0 || distance < best.distance) best = {distance, row};
}

UNBLEMISH_HD float nearest_cotangent(float f, float m) { return 2.0f * (f - m); }

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
