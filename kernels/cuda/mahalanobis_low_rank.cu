// Squared Mahalanobis distances by a basis of few directions; see include/unblemish/mahalanobis_low_rank.hpp.
//
// A block takes one cell after the other. The basis is read twice, the second time from the cache.
#include <math.h>

#include "teams.cuh"
#include "unblemish/mahalanobis_low_rank.hpp"

namespace unblemish::cuda {

constexpr int kMostRank = 1024;

struct BasisCell {
  const float* f;
  const float* mean;
  const float* basis;
  float inverse_variance;
  float* cotangent;
};

// B^T d: neighbouring threads take neighbouring directions; where there are fewer than threads, the
// channels are shared by as many groups as fit, and their sums added in order.
__device__ void along_basis(const float* basis, const float* d, int channels, int rank, float* along) {
  __shared__ float each[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int groups = rank < kThreads ? kThreads / rank : 1;
  for (int first = 0; first < rank; first += kThreads) {
    const int width = rank - first < kThreads ? rank - first : kThreads;
    const int group = thread / width, r = first + thread % width;
    float sum = 0.0f;
    if (group < groups)
      for (int c = group; c < channels; c += groups) sum += basis[static_cast<size_t>(c) * rank + r] * d[c];
    each[thread] = sum;
    __syncthreads();
    if (thread < width) {
      sum = 0.0f;
      for (int g = 0; g < groups; ++g) sum += each[g * width + thread];
      along[r] = sum;
    }
    __syncthreads();
  }
}

// The score, in thread 0.
__device__ float basis_cell(const BasisCell& a, int channels, int rank) {
  __shared__ float d[kMostChannels], along[kMostRank];
  __syncthreads();  // the previous cell may still be read
  for (int c = static_cast<int>(threadIdx.x); c < channels; c += kThreads) d[c] = a.f[c] - a.mean[c];
  __syncthreads();
  along_basis(a.basis, d, channels, rank, along);
  double value = 0.0;
  for (int first = 0; first < channels; first += kTeams) {
    const int c = first + team();
    float sum = 0.0f;
    if (c < channels)
      for (int r = member(); r < rank; r += kTeam) sum += a.basis[static_cast<size_t>(c) * rank + r] * along[r];
    sum = sum_of_team(sum);
    if (member() != 0 || c >= channels) continue;
    const float rest = d[c] - sum;
    value += rest_value(d[c], rest);
    if (a.cotangent != nullptr) a.cotangent[c] = rest_cotangent(rest, a.inverse_variance);
  }
  return static_cast<float>(reduce_block<Add>(value) * a.inverse_variance);
}

}  // namespace unblemish::cuda

// basis: (places, channels, rank). inverse_variance: (places). The others as in unblemish_mahalanobis. More
// than kMostChannels channels or kMostRank directions: every score is NaN.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_mahalanobis_low_rank(const float* __restrict__ f, const float* __restrict__ mean,
                                   const float* __restrict__ basis, const float* __restrict__ inverse_variance,
                                   const int* __restrict__ cells, float* __restrict__ scores,
                                   float* __restrict__ cotangent, int items, int length, int channels, int rank) {
  using namespace unblemish::cuda;
  const size_t size = static_cast<size_t>(channels) * rank;
  for (size_t at = blockIdx.x; at < static_cast<size_t>(length); at += gridDim.x)
    for (size_t item = blockIdx.y; item < static_cast<size_t>(items); item += gridDim.y) {
      const size_t cell = item * length + at;
      float* slope = cotangent == nullptr ? nullptr : cotangent + cell * channels;
      float score = 0.0f;
      if (channels > kMostChannels || rank > kMostRank) {
        score = NAN;
      } else if (cells[cell] >= 0) {
        const size_t place = static_cast<size_t>(cells[cell]);
        score = basis_cell(
            {f + cell * channels, mean + place * channels, basis + place * size, inverse_variance[place], slope},
            channels, rank);
      } else if (slope != nullptr) {
        for (int c = static_cast<int>(threadIdx.x); c < channels; c += kThreads) slope[c] = 0.0f;
      }
      if (threadIdx.x == 0) scores[cell] = score;
    }
}
