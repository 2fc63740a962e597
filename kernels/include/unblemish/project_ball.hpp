// Projection on the l2 ball: argmin over q of ||q - p|| with ||q - c|| <= radius.
//     q = p                                   where ||p - c|| <= radius
//     q = c + (radius / ||p - c||) (p - c)    elsewhere
#pragma once

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

UNBLEMISH_HD double squared_distance(float p, float c) {
  const double d = static_cast<double>(p) - static_cast<double>(c);
  return d * d;
}

// The factor of p - c; 1 inside the ball, NaN where the distance is NaN.
UNBLEMISH_HD double ball_factor(double squared, float radius) {
  const double distance = sqrt(squared);
  return distance <= radius ? 1.0 : radius / distance;
}

UNBLEMISH_HD float towards_centre(float p, float c, double factor) {
  const double centre = c;
  return static_cast<float>(centre + factor * (static_cast<double>(p) - centre));
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
