// Structural dissimilarity of a patch of one batch item, one copy per instruction set.
#pragma once

#include "image_tiles.hpp"
#include "unblemish/dssim.hpp"

namespace unblemish::cpu {

struct Patch {
  Band rows;
  Band columns;
};

struct DssimWindow {
  const float* weights;  // (2 radius + 1)
  std::size_t radius;
  DssimConstants constants;
};

// Pointers to the first element of the item; map, direct and cotangent may be nullptr.
struct DssimTile {
  const float* x;
  const float* g;
  float factor;      // of the gradients
  float* map;        // one plane: the mean over the channels
  float* direct;     // by x
  float* cotangent;  // by g
  float* room;       // dssim_room floats

  bool has_gradient() const { return direct != nullptr || cotangent != nullptr; }
};

inline constexpr std::size_t kMostTaps = 511;

inline constexpr std::size_t kDssimStep = 32;  // no register of two lanes is wider

// Floats from one row of a quantity to the next: what is read beside the columns, and the last step.
inline std::size_t dssim_stride(std::size_t columns, std::size_t radius) {
  return (columns + 4 * radius + kDssimStep - 1) / kDssimStep * kDssimStep + kDssimStep;
}

// Two rings of 2 radius + 1 rows, and three rows, of four quantities each.
inline std::size_t dssim_room(std::size_t columns, std::size_t radius) {
  return 4 * (2 * (2 * radius + 1) + 3) * dssim_stride(columns, radius);
}

// Sum over pixels and channels of (1 - SSIM) / 2.
struct DssimTiles {
  double (*dssim)(const DssimTile&, const Plane&, const Patch&, const DssimWindow&);
};

namespace baseline { extern const DssimTiles dssim_tiles; }
namespace avx2 { extern const DssimTiles dssim_tiles; }
namespace avx512 { extern const DssimTiles dssim_tiles; }

}  // namespace unblemish::cpu
