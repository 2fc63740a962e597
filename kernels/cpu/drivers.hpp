// Whole-array operations: blocks of one batch item each, partial sums in double, summed in block order.
// The blocks do not depend on the number of threads, so neither does any result.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "pool.hpp"
#include "tiles.hpp"

namespace unblemish::cpu {

// The copies of the tiles that this processor runs, narrowest first.
const std::vector<const Tiles*>& runnable_tiles();

// The threads and the copy of the tiles that calls run on.
struct Engine {
  Pool pool;
  const Tiles& tiles;

  // `isa` names one of runnable_tiles(); throws std::invalid_argument otherwise.
  Engine(unsigned threads, const std::string& isa);
};

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
void rgi_closed_form(Engine&, const RgiArrays&, ImageShape, bool shared, float* mask, float* cotangent);
void rgi_gradient(Engine&, const RgiArrays&, ImageShape, bool shared, const float* mask, float* cotangent,
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

void residual(Engine&, Loss, const ResidualArrays&, ImageShape, Weight);
void adam(Engine&, const AdamTile&, const AdamStep&, std::size_t count);
void project_ball(Engine&, float* p, const float* centre, const float* radius, std::size_t rows, std::size_t length);
void norms(Engine&, const float* x, std::size_t rows, std::size_t length, double* squared, double* largest);
bool all_finite(Engine&, const float* x, std::size_t count);

}  // namespace unblemish::cpu
