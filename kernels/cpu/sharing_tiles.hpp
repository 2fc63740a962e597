// The loops of gradient sharing over rows of one batch item, one copy per instruction set.
#pragma once

#include "image_tiles.hpp"

namespace unblemish::cpu {

using Half = unsigned short;  // the bits of a float16

// The (2 radius + 1)^2 neighbours of a pixel. Those further than `rows` or `columns` away do not count:
// they lie outside every image of the size at hand, or their weight is 0.
struct Neighbours {
  std::size_t radius;
  std::size_t rows;
  std::size_t columns;
};

struct Falloff {
  float inverse_sigma_space;
  float inverse_sigma_colour;
};

// Neighbour k of the item's pixels lies at weights + k * height * width. `room`: see Room.
struct WeightsTile {
  const float* x;
  Half* weights;
  float* room;
};

struct ShareTile {
  const float* gradient;
  const Half* weights;
  float* shared;
  float* room;
};

struct DirectTile {
  const float* gradient;
  const float* x;
  float* shared;
  float* room;
};

struct SharingTiles {
  void (*weights)(const WeightsTile&, const Plane&, Band, const Neighbours&, const Falloff&);
  void (*share)(const ShareTile&, const Plane&, Band, const Neighbours&);
  void (*direct)(const DirectTile&, const Plane&, Band, const Neighbours&, const Falloff&);
};

// Floats that the tiles need beside their arrays, for `rows` rows: rows of x, gradients moved by one
// column or padded, and sums.
struct Room {
  static std::size_t of_weights(const Plane& p, std::size_t rows, const Neighbours& n) {
    const std::size_t kept = (2 * n.rows + 1) * (2 * n.columns + 1);
    return (p.channels * (rows + 2 * n.rows) + (kept + 1) * rows) * p.width;
  }
  static std::size_t of_share(const Plane& p, std::size_t rows, const Neighbours& n) {
    return p.channels * (rows + 2 * n.rows) * p.width;
  }
  static std::size_t of_direct(const Plane& p, std::size_t rows, const Neighbours& n) {
    return (4 * p.channels + 2) * ((rows + 2 * n.rows) * (p.width + n.columns) + 2 * n.columns);
  }
};

namespace baseline { extern const SharingTiles sharing_tiles; }
namespace avx2 { extern const SharingTiles sharing_tiles; }
namespace avx512 { extern const SharingTiles sharing_tiles; }

}  // namespace unblemish::cpu
