// The loops of the greedy k-centre choice, in one copy per instruction set.
#pragma once

#include <cstddef>

namespace unblemish::cpu {

// Every squared distance is summed in the order of the numbers, so that both functions give the same bits.
struct KCentreTiles {
  std::size_t panel;  // centres that lie side by side
  std::size_t block;  // rows of the pool that lie side by side
  // Lower nearest[i], of rows[i], to the squared distance to the nearest of the centres in `count_panels`
  // panels (width, panel), where that is less.
  void (*lower)(const float* const* rows, std::size_t count, std::size_t width, const float* panels,
                std::size_t count_panels, float* nearest);
  // The same for the rows of a block (width, block) and one centre; returns the largest.
  float (*lower_block)(const float* rows, std::size_t width, const float* centre, float* nearest);
};

namespace baseline { extern const KCentreTiles k_centre_tiles; }
namespace avx2 { extern const KCentreTiles k_centre_tiles; }
namespace avx512 { extern const KCentreTiles k_centre_tiles; }

}  // namespace unblemish::cpu
