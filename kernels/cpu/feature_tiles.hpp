// The loops over one cell or one group of queries, in one copy per instruction set.
#pragma once

#include <cstddef>

#include "tiles.hpp"

namespace unblemish::cpu {

struct MahalanobisTile {
  const float* f;
  const float* mean;
  const float* whitening;  // packed rows of the place
  std::size_t readable;    // floats from `whitening` on that may be read
  float* cotangent;        // nullptr where it is not wanted
};

struct LowRankTile {
  const float* f;
  const float* mean;
  const float* basis;    // (channels, rank) of the place
  std::size_t readable;  // floats from `basis` on that may be read
  float inverse_variance;
  float* cotangent;  // nullptr where it is not wanted
};

struct NearestTile {
  const float* f;
  const float* bank;
  const int* candidates;
  std::size_t count;
  float* cotangent;  // nullptr where it is not wanted
};

struct NearestFound {
  float distance;
  int chosen;
};

// Consecutive rows of the bank, packed by pack_bank.
struct BankPart {
  const float* packed;
  const float* norms;  // of the first row on
  std::size_t first;
  std::size_t rows;
};

struct QueryTile {
  const float* queries;
  std::size_t count;
  std::size_t channels;
  float* distances;  // (count, k), heaps
  int* index;
  std::size_t k;
};

struct FeatureTiles {
  std::size_t lanes;
  std::size_t panel;  // rows of the bank that are packed side by side
  // Scores. `room`: 2 (channels + lanes) floats.
  float (*mahalanobis)(const MahalanobisTile&, std::size_t channels, float* room);
  // `room`: channels + rank + 2 lanes floats.
  float (*mahalanobis_low_rank)(const LowRankTile&, std::size_t channels, std::size_t rank, float* room);
  NearestFound (*nearest_candidate)(const NearestTile&, std::size_t channels);
  // Rows (rows, channels) to panels [channels][panel], the last one filled up with zeros.
  void (*pack_bank)(const float* bank, std::size_t rows, std::size_t channels, float* packed);
  void (*norms)(const float* bank, std::size_t rows, std::size_t channels, float* norms);
  // Offer every row of the part to the heaps of the queries.
  void (*rank_part)(const QueryTile&, const BankPart&);
  // Replace rankings by squared distances, and sort.
  void (*settle)(const QueryTile&, const float* bank);
};

namespace baseline { extern const FeatureTiles feature_tiles; }
namespace avx2 { extern const FeatureTiles feature_tiles; }
namespace avx512 { extern const FeatureTiles feature_tiles; }

}  // namespace unblemish::cpu
