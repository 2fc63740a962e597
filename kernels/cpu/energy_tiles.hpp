// The likelihood and the step of energy projection over a part of one item, one copy per instruction set.
#pragma once

#include "tiles.hpp"
#include "unblemish/energy_step.hpp"

namespace unblemish::cpu {

struct EnergyTile {
  float* x;
  const float* start;
  const float* pulled;
  const float* direct;  // nullptr for none, as the rest
  float direct_factor;
  const float* mask;
  const float* restored;
  float* first;  // both or none
  float* second;
};

struct EnergyKind {
  bool weigh_step;
  bool proximal;
};

struct EnergySums {
  double distance;  // from the start, before the step
  double squared;   // of the change
  float largest;    // of the changes that are numbers
};

struct LikelihoodTile {
  const float* x;
  const float* g;
  const float* log_scale;  // one row, shared by the channels
  float scale;
  float* cotangent;
  float* log_scale_cotangent;  // one row
};

// The sum of the likelihood is before the factor `scale`.
struct EnergyTiles {
  double (*gaussian_nll)(const LikelihoodTile&, Extent);
  EnergySums (*step)(const EnergyTile&, const EnergyStep&, EnergyKind, std::size_t count);
};

namespace baseline { extern const EnergyTiles energy_tiles; }
namespace avx2 { extern const EnergyTiles energy_tiles; }
namespace avx512 { extern const EnergyTiles energy_tiles; }

}  // namespace unblemish::cpu
