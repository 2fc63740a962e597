// Squared Mahalanobis distances of many cells; see include/unblemish/mahalanobis.hpp.
//
// A block takes one cell after the other. Some rows of the packed whitening, which lie behind each other,
// are brought into shared memory, where both the products and the slope take them: W is read once. Items
// of one location follow each other, so that what they share comes from the cache.
#include <math.h>

#include "teams.cuh"
#include "unblemish/mahalanobis.hpp"

namespace unblemish::cuda {

constexpr int kTileFloats = 4096;  // of W at hand: two of the longest rows at least

struct GaussianCell {
  const float* f;
  const float* mean;
  const float* whitening;
  float* cotangent;
};

// Floats between the beginnings of two rows of W.
__device__ __forceinline__ int between(int row, int later) {
  return static_cast<int>(packed_start(static_cast<size_t>(later)) - packed_start(static_cast<size_t>(row)));
}

// How many rows from `row` on are brought at once.
__device__ __forceinline__ int rows_at_hand(int row, int channels) {
  int count = channels - row < kTeams ? channels - row : kTeams;
  while (between(row, row + count) > kTileFloats) --count;
  return count;
}

// The score, in thread 0.
__device__ float gaussian_cell(const GaussianCell& a, int channels) {
  __shared__ float d[kMostChannels], slope[kMostChannels], tile[kTileFloats], t[kTeams];
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();  // the previous cell may still be read
  for (int c = thread; c < channels; c += kThreads) {
    d[c] = a.f[c] - a.mean[c];
    slope[c] = 0.0f;
  }
  double squares = 0.0;
  for (int row = 0, count = 0; row < channels; row += count) {
    count = rows_at_hand(row, channels);
    const float* rows = a.whitening + packed_start(static_cast<size_t>(row));
    __syncthreads();  // d is complete; the rows before may still be read
    for (int e = thread; e < between(row, row + count); e += kThreads) tile[e] = rows[e];
    __syncthreads();
    float sum = 0.0f;
    if (team() < count)
      for (int c = member(); c <= row + team(); c += kTeam) sum += tile[between(row, row + team()) + c] * d[c];
    sum = sum_of_team(sum);
    if (member() == 0) {
      t[team()] = sum;
      squares += whitened_square(sum);  // 0 of a team without a row
    }
    if (a.cotangent == nullptr) continue;
    __syncthreads();
    for (int c = thread; c < row + count; c += kThreads)
      for (int r = c > row ? c - row : 0; r < count; ++r) slope[c] += t[r] * tile[between(row, row + r) + c];
  }
  if (a.cotangent != nullptr)
    for (int c = thread; c < channels; c += kThreads) a.cotangent[c] = 2.0f * slope[c];
  return static_cast<float>(reduce_block<Add>(squares));
}

}  // namespace unblemish::cuda

// f: (items, length, channels). mean: (places, channels). whitening: (places, channels (channels + 1) / 2).
// cells: (items, length). cotangent: (items, length, channels) or nullptr. gridDim = (blocks, items at once);
// any grid gives the same bits. More than kMostChannels channels: every score is NaN.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_mahalanobis(const float* __restrict__ f, const float* __restrict__ mean,
                          const float* __restrict__ whitening, const int* __restrict__ cells,
                          float* __restrict__ scores, float* __restrict__ cotangent, int items, int length,
                          int channels) {
  using namespace unblemish::cuda;
  const size_t packed = unblemish::packed_start(static_cast<size_t>(channels));
  for (size_t at = blockIdx.x; at < static_cast<size_t>(length); at += gridDim.x)
    for (size_t item = blockIdx.y; item < static_cast<size_t>(items); item += gridDim.y) {
      const size_t cell = item * length + at;
      float* slope = cotangent == nullptr ? nullptr : cotangent + cell * channels;
      float score = 0.0f;
      if (channels > kMostChannels) {
        score = NAN;
      } else if (cells[cell] >= 0) {
        const size_t place = static_cast<size_t>(cells[cell]);
        score = gaussian_cell({f + cell * channels, mean + place * channels, whitening + place * packed, slope},
                              channels);
      } else if (slope != nullptr) {
        for (int c = static_cast<int>(threadIdx.x); c < channels; c += kThreads) slope[c] = 0.0f;
      }
      if (threadIdx.x == 0) scores[cell] = score;
    }
}
