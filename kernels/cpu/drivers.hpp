// Whole-array operations: blocks of one batch item each, partial sums in double, summed in block order.
// The blocks do not depend on the number of threads, so neither does any result.
#pragma once

#include <cstddef>

#include "pool.hpp"
#include "tiles.hpp"

namespace unblemish::cpu {

// The widest copy of the tiles this processor runs.
const Tiles& best_tiles();

struct ImageShape {
  std::size_t batch;
  std::size_t channels;
  std::size_t plane;  // height * width
};

struct RgiArrays {
  const float* x;
  const float* g;
  const float* lam;    // (batch)
  const float* scale;  // (batch)
  double* objective;   // (batch)
};

// `shared`: one mask row for all channels; otherwise the mask has the shape of the image.
void rgi_closed_form(Pool&, const RgiArrays&, ImageShape, bool shared, float* mask, float* cotangent);
void rgi_gradient(Pool&, const RgiArrays&, ImageShape, bool shared, const float* mask, float* cotangent,
                  float* mask_gradient);

enum class Loss { l2, l1 };
enum class Weight { none, shared, element };

struct ResidualArrays {
  const float* x;
  const float* g;
  const float* scale;
  const float* weight;
  float* cotangent;
  double* objective;
};

void residual(Pool&, Loss, const ResidualArrays&, ImageShape, Weight);
void adam(Pool&, const AdamTile&, const AdamStep&, std::size_t count);
void project_ball(Pool&, float* p, const float* centre, const float* radius, std::size_t rows, std::size_t length);
void norms(Pool&, const float* x, std::size_t rows, std::size_t length, double* squared, double* largest);
bool all_finite(Pool&, const float* x, std::size_t count);

}  // namespace unblemish::cpu
