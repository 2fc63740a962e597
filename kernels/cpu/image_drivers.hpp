// The terms and the update of F2PAD over whole arrays: bands of rows, or blocks, of one batch item each.
// As in drivers.hpp, no result depends on the number of threads.
#pragma once

#include "drivers.hpp"
#include "image_tiles.hpp"
#include "sharing_tiles.hpp"

namespace unblemish::cpu {

struct Images {
  std::size_t batch;
  Plane plane;
};

// `gradient` and `value` (batch) are added to; `weight` (batch).
void total_variation(Engine&, const Images&, const float* n, const float* weight, float* gradient, double* value);
void log_penalty(Engine&, const Images&, const PenaltyTile&, const float* weight, double* value);
void mixture_prior(Engine&, const Images&, const PriorTile&, const Mixture&, const float* weight, double* value);

struct Sigmas {
  double space;
  double colour;
};

void sharing_weights(Engine&, const Images&, const float* x, std::size_t radius, const Sigmas&, Half* weights);
void share_gradient(Engine&, const Images&, const float* gradient, const Half* weights, std::size_t radius,
                    float* shared);
void share_gradient_direct(Engine&, const Images&, const float* gradient, const float* x, std::size_t radius,
                           const Sigmas&, float* shared);

// `rate` (batch) in place of the tile's own.
void adan(Engine&, const Images&, const AdanTile&, const AdanStep&, const float* rate);

}  // namespace unblemish::cpu
