// The terms and the step of energy projection over whole arrays. As in drivers.hpp, no result depends on the
// number of threads.
#pragma once

#include "dssim_tiles.hpp"
#include "image_drivers.hpp"

namespace unblemish::cpu {

struct DssimArrays {
  const float* x;
  const float* g;
  const float* scale;  // (batch)
  float* map;          // (batch, 1, height, width), nullptr for none
  float* direct;       // nullptr for none, as the next
  float* cotangent;
  double* objective;   // (batch)
};

void dssim(Engine&, const Images&, const DssimArrays&, double range, std::size_t radius, double sigma);

}  // namespace unblemish::cpu
