// The loops of F2PAD's terms and update over a part of one batch item, one copy per instruction set.
#pragma once

#include "tiles.hpp"
#include "unblemish/adan.hpp"

namespace unblemish::cpu {

// An item's image: channels of height x width.
struct Plane {
  std::size_t channels;
  std::size_t height;
  std::size_t width;
  std::size_t size;  // height * width
};

// Rows [first, last) of an item.
struct Band {
  std::size_t first;
  std::size_t last;
};

struct VariationTile {
  const float* n;
  float weight;
  float* gradient;
};

struct PenaltyTile {
  const float* x;
  const float* n;
  const unsigned char* free;  // one row
  float weight;
  float epsilon;
  float* gradient;
};

struct Mixture {
  const float* means;       // (components, channels)
  const float* precisions;  // (components, channels, channels)
  std::size_t components;
};

struct PriorTile {
  const float* n;
  const unsigned char* free;  // one row
  float weight;
  float* gradient;
};

struct AdanTile {
  float* n;
  const float* x;
  const float* g;
  float* first;
  float* slope;
  float* second;
  float* previous;
  const unsigned char* free;
  float rate;
};

// Every sum returned is before the factor `weight`; gradients are added to.
struct ImageTiles {
  double (*total_variation)(const VariationTile&, const Plane&, Band);
  double (*log_penalty)(const PenaltyTile&, Extent);
  double (*mixture_prior)(const PriorTile&, const Mixture&, Extent);
  void (*adan)(const AdanTile&, const AdanStep&, std::size_t count);
};

namespace baseline { extern const ImageTiles image_tiles; }
namespace avx2 { extern const ImageTiles image_tiles; }
namespace avx512 { extern const ImageTiles image_tiles; }

}  // namespace unblemish::cpu
