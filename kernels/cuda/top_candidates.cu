// The k rows of a bank nearest to each query; see include/unblemish/top_candidates.hpp.
//
// Three kernels: the norms of the rows, once for a bank; the search, in which every block multiplies a
// group of queries with one slice of the bank, tile by tile through shared memory, and keeps the best of the
// slice in heaps; and the end, which merges the slices, replaces rankings by distances, and sorts.
#include <math.h>

#include "teams.cuh"
#include "unblemish/top_candidates.hpp"

namespace unblemish::cuda {

constexpr int kTile = 64;       // queries, and rows of the bank, of one product
constexpr int kDepth = 16;      // channels at hand
constexpr int kSide = 16;       // threads along queries and along rows
constexpr int kOwn = kTile / kSide;
constexpr int kPitch = kTile + 4;  // spreads columns over the banks of memory, and keeps kOwn floats together aligned

static_assert(kSide * kSide == kThreads && kTile <= kThreads && kOwn == 4);

struct Matrix {
  const float* rows;
  size_t count;
  int channels;
};

// Channels [depth, depth + kDepth) of rows [first, first + kTile), transposed; zeros beyond the ends.
__device__ __forceinline__ void bring(const Matrix& m, size_t first, int depth, float (*tile)[kPitch]) {
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kDepth; e += kThreads) {
    const int row = e / kDepth, c = e % kDepth;
    const bool inside = first + row < m.count && depth + c < m.channels;
    tile[c][row] = inside ? m.rows[(first + row) * m.channels + depth + c] : 0.0f;
  }
}

// Products of one tile of queries with one of rows, to `product` [query][row].
__device__ void multiply(const Matrix& queries, size_t query, const Matrix& bank, size_t row,
                         float (*product)[kPitch]) {
  alignas(16) __shared__ float left[kDepth][kPitch], right[kDepth][kPitch];
  const int y = static_cast<int>(threadIdx.x) / kSide * kOwn, x = static_cast<int>(threadIdx.x) % kSide * kOwn;
  float sum[kOwn][kOwn] = {};
  for (int depth = 0; depth < bank.channels; depth += kDepth) {
    __syncthreads();
    bring(queries, query, depth, left);
    bring(bank, row, depth, right);
    __syncthreads();
    for (int c = 0; c < kDepth; ++c) {
      const Lanes<kOwn> a = load<kOwn>(&left[c][y]), b = load<kOwn>(&right[c][x]);
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
#pragma unroll
        for (int j = 0; j < kOwn; ++j) sum[i][j] += a.v[i] * b.v[j];
    }
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) store<kOwn>(&product[y + i][x], {{sum[i][0], sum[i][1], sum[i][2], sum[i][3]}});
}

// Offer rows [first, end) of the bank to the heap of this thread's query.
__device__ void search_slice(const Matrix& queries, size_t query, const Matrix& bank, const float* norms,
                             size_t first, size_t end, const Heap& heap) {
  alignas(16) __shared__ float product[kTile][kPitch];
  const bool offers = heap.count > 0;
  if (offers) empty_heap(heap, INFINITY);
  for (size_t row = first; row < end; row += kTile) {
    multiply(queries, query, bank, row, product);
    __syncthreads();
    if (!offers) continue;
    for (int k = 0; k < kTile && row + k < end; ++k)
      offer(heap, ranking(norms[row + k], product[threadIdx.x][k]), static_cast<int>(row + k));
  }
  // Equal ones in the order of their rows, as the merge takes them.
  if (offers) sort_heap(heap);
}

// Into a heap in the outputs, by one thread. What a slice has too few rows for is infinite, and not taken.
__device__ void merge_slices(const float* value, const int* index, int slices, size_t stride, const Heap& best) {
  empty_heap(best, INFINITY);
  for (int slice = 0; slice < slices; ++slice)
    for (size_t k = 0; k < best.count; ++k) offer(best, value[slice * stride + k], index[slice * stride + k]);
}

}  // namespace unblemish::cuda

// norms: (rows), ||m||^2. gridDim = (blocks, 1).
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_bank_norms(const float* __restrict__ bank, float* __restrict__ norms, size_t rows, int channels) {
  using namespace unblemish::cuda;
  for (size_t first = static_cast<size_t>(blockIdx.x) * kTeams; first < rows;
       first += static_cast<size_t>(gridDim.x) * kTeams) {
    const size_t row = first + team();
    float sum = 0.0f;
    if (row < rows)
      for (int c = member(); c < channels; c += kTeam) sum += bank[row * channels + c] * bank[row * channels + c];
    sum = sum_of_team(sum);
    if (member() == 0 && row < rows) norms[row] = sum;
  }
}

// queries: (count, channels). bank: (rows, channels). value, index: (slices, count, k), each slice's best,
// sorted. gridDim = (groups of kTile queries at once, slices).
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_rank_candidates(const float* __restrict__ queries, const float* __restrict__ bank,
                              const float* __restrict__ norms, float* __restrict__ value, int* __restrict__ index,
                              size_t count, size_t rows, int channels, size_t k) {
  using namespace unblemish::cuda;
  const size_t tiles = (rows + kTile - 1) / kTile;
  const size_t slice = (tiles + gridDim.y - 1) / gridDim.y * kTile;
  const size_t first = blockIdx.y * slice < rows ? blockIdx.y * slice : rows;
  const size_t end = rows - first < slice ? rows : first + slice;
  for (size_t query = static_cast<size_t>(blockIdx.x) * kTile; query < count;
       query += static_cast<size_t>(gridDim.x) * kTile) {
    const bool offers = threadIdx.x < kTile && query + threadIdx.x < count;
    const size_t slot = (blockIdx.y * count + query + threadIdx.x) * k;
    const unblemish::Heap heap{offers ? value + slot : nullptr, offers ? index + slot : nullptr, offers ? k : 0};
    search_slice({queries, count, channels}, query, {bank, rows, channels}, norms, first, end, heap);
  }
}

// index, distances: (count, k), the nearest first. gridDim = (queries at once, 1).
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_settle_candidates(const float* __restrict__ queries, const float* __restrict__ bank,
                                const float* __restrict__ value, const int* __restrict__ ranked,
                                int* __restrict__ index, float* __restrict__ distances, size_t count, int channels,
                                size_t k, int slices) {
  using namespace unblemish::cuda;
  for (size_t query = blockIdx.x; query < count; query += gridDim.x) {
    const unblemish::Heap best{distances + query * k, index + query * k, k};
    if (threadIdx.x == 0) merge_slices(value + query * k, ranked + query * k, slices, count * k, best);
    __syncthreads();
    for (size_t first = 0; first < k; first += kTeams) {
      const size_t at = first + team();
      const float sum = sum_of_team(
          at < k ? part_of_distance(queries + query * channels,
                                    bank + static_cast<size_t>(best.index[at]) * channels, channels)
                 : 0.0f);
      if (member() == 0 && at < k) best.value[at] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) unblemish::sort_heap(best);
  }
}
