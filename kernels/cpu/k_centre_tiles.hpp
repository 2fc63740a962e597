// The loops of the greedy k-centre choice, in one copy per instruction set.
#pragma once

#include <cstddef>

namespace unblemish::cpu {

inline constexpr std::size_t kHead = 16;  // leading numbers of a row that are compared first: one cache line

// One row of a cluster, and its squared distance to the cluster's centre, the nearest of all centres.
struct Member {
  int row;
  float nearest;
};

// Rows of whole multiples of kHead numbers, and their heads once more, side by side.
struct KCentreRows {
  const float* rows;   // (count, width)
  const float* heads;  // (count, kHead)
  std::size_t width;
};

// What a scan leaves: members [0, kept) stay, the others are nearer to the new centre.
struct Scanned {
  std::size_t kept;
  float farthest;  // of those kept; -1 for none
  int row;         // the lowest of the farthest
};

struct KCentreTiles {
  // Clusters whose heads lie within their limits of z's: their numbers to `out`; returns how many.
  // `blocks`: heads of the centres by kHead, transposed: (ceil(count / kHead), kHead numbers, kHead centres).
  std::size_t (*within)(const float* blocks, const float* limits, std::size_t count, const float* z, int* out);
  // ||a - b||^2, or a part of it that is no less than `limit`.
  float (*distance)(const float* a, const float* b, std::size_t width, float limit);
  // Move members nearer to row z than to their centre, and z itself, to the end, with their new distance.
  // Those with nearest <= `safe` are known to stay.
  Scanned (*scan)(Member* members, std::size_t count, const KCentreRows& rows, int z, float safe);
  float (*largest)(const float* values, std::size_t count);
};

namespace baseline { extern const KCentreTiles k_centre_tiles; }
namespace avx2 { extern const KCentreTiles k_centre_tiles; }
namespace avx512 { extern const KCentreTiles k_centre_tiles; }

}  // namespace unblemish::cpu
