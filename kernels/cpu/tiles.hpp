// The loops over one block of one batch item, in one copy per instruction set.
#pragma once

#include <cstddef>

#include "unblemish/adam.hpp"

namespace unblemish::cpu {

// `count` elements in each of `channels` rows that lie `stride` elements apart.
struct Extent {
  std::size_t channels;
  std::size_t stride;
  std::size_t count;
};

struct ClosedFormTile {
  const float* x;
  const float* g;
  float lam;
  float scale;
  float* mask;  // one row, shared by the channels
  float* cotangent;
};

struct GradientTile {
  const float* x;
  const float* g;
  const float* mask;  // one row
  float lam;
  float scale;
  float* cotangent;
  float* mask_gradient;  // one row
};

struct ResidualTile {
  const float* x;
  const float* g;
  const float* weight;  // one row, shared by the channels; nullptr where every weight is 1
  float scale;
  float* cotangent;
};

struct AdamTile {
  float* p;
  const float* grad;
  float* m;
  float* v;
};

struct Norms {
  double squared;
  float largest;  // of the elements that are numbers
};

// Every sum returned is before the factor `scale`.
struct Tiles {
  const char* isa;
  double (*rgi_closed_form)(const ClosedFormTile&, Extent);
  double (*rgi_gradient)(const GradientTile&, Extent);
  double (*residual_l2)(const ResidualTile&, Extent);
  double (*residual_l1)(const ResidualTile&, Extent);
  void (*adam)(const AdamTile&, const AdamStep&, std::size_t count);
  double (*squared_distance)(const float* p, const float* centre, std::size_t count);
  void (*towards_centre)(float* p, const float* centre, double factor, std::size_t count);
  Norms (*norms)(const float* x, std::size_t count);
  bool (*all_finite)(const float* x, std::size_t count);
};

namespace baseline { extern const Tiles tiles; }
namespace avx2 { extern const Tiles tiles; }
namespace avx512 { extern const Tiles tiles; }

}  // namespace unblemish::cpu
