// Squared distance to the nearest of each cell's candidates; see include/unblemish/nearest_candidate.hpp.
//
// A block takes one cell after the other, and of its candidates as many at once as it has teams.
#include <math.h>

#include "teams.cuh"
#include "unblemish/nearest_candidate.hpp"

namespace unblemish::cuda {

// The best of all candidates up to the first number below 0, in every thread.
__device__ Nearest nearest_of(const float* f, const float* bank, const int* candidates, int count, int channels) {
  __shared__ float distance[kTeams];
  __shared__ Nearest best;
  if (threadIdx.x == 0) best = {INFINITY, -1};
  for (int first = 0; first < count && candidates[first] >= 0; first += kTeams) {
    const int k = first + team();
    const int row = k < count ? candidates[k] : -1;
    const float sum = sum_of_team(row < 0 ? 0.0f : part_of_distance(f, bank + static_cast<size_t>(row) * channels,
                                                                    channels));
    if (member() == 0) distance[team()] = sum;
    __syncthreads();
    if (threadIdx.x != 0) continue;
    for (int at = 0; at < kTeams && first + at < count && candidates[first + at] >= 0; ++at)
      consider(best, distance[at], candidates[first + at]);
  }
  __syncthreads();
  const Nearest found = best;
  __syncthreads();  // thread 0 begins the next cell
  return found;
}

}  // namespace unblemish::cuda

// f: (cells, channels). bank: (rows, channels). candidates: (cells, count). cotangent: (cells, channels) or
// nullptr. gridDim = (blocks, 1); any grid gives the same bits.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_nearest_candidate(const float* __restrict__ f, const float* __restrict__ bank,
                                const int* __restrict__ candidates, float* __restrict__ scores,
                                float* __restrict__ cotangent, int* __restrict__ chosen, size_t cells, int channels,
                                int count) {
  using namespace unblemish::cuda;
  for (size_t cell = blockIdx.x; cell < cells; cell += gridDim.x) {
    const float* here = f + cell * channels;
    const unblemish::Nearest best = nearest_of(here, bank, candidates + cell * count, count, channels);
    const bool counts = best.chosen >= 0;
    if (threadIdx.x == 0) {
      scores[cell] = counts ? best.distance : 0.0f;
      chosen[cell] = best.chosen;
    }
    if (cotangent == nullptr) continue;
    const float* m = bank + static_cast<size_t>(counts ? best.chosen : 0) * channels;
    for (int c = static_cast<int>(threadIdx.x); c < channels; c += kThreads)
      cotangent[cell * channels + c] = counts ? unblemish::nearest_cotangent(here[c], m[c]) : 0.0f;
  }
}
