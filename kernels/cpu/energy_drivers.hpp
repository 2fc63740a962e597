// The terms and the step of energy projection over whole arrays. As in drivers.hpp, no result depends on the
// number of threads.
#pragma once

#include "dssim_tiles.hpp"
#include "energy_tiles.hpp"
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

struct LikelihoodArrays {
  LikelihoodTile tile;  // the first item; its scale is not read
  const float* scale;   // (batch)
  double* objective;    // (batch)
};

// `shared`: one row of log_scale for all channels; otherwise it has the shape of the image.
void gaussian_nll(Engine&, const Images&, bool shared, const LikelihoodArrays&);

struct EnergyArrays {
  EnergyTile tile;   // the first item
  bool shared_mask;  // one row for all channels
  const float* lam;  // (batch), as the rest
  const float* rate;
  double* l1;
  double* squared_change;
  double* largest_change;
};

// `adam` of a rate of 1.
void energy_step(Engine&, const Images&, const EnergyArrays&, const AdamStep& adam, EnergyKind);

}  // namespace unblemish::cpu
