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

// The rows of the bank of one block.
struct Slice {
  const float* norms;
  size_t first, end;
};

// Rankings of one tile of queries and one of rows, to `ranks` [query][row]; of rows beyond the end infinity, which no
// heap takes in.
__device__ void rank(const Matrix& queries, size_t query, const Matrix& bank, size_t row, const Slice& slice,
                     float (*ranks)[kPitch]) {
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
  for (int j = 0; j < kOwn; ++j) {
    const bool inside = row + x + j < slice.end;
    const float norm = inside ? slice.norms[row + x + j] : 0.0f;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) sum[i][j] = inside ? ranking(norm, sum[i][j]) : INFINITY;
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) store<kOwn>(&ranks[y + i][x], {{sum[i][0], sum[i][1], sum[i][2], sum[i][3]}});
}

// Offer, and keep the worst value taken in at hand.
__device__ __forceinline__ void offer_below(const Heap& heap, float value, int index, float& worst) {
  if (!(value < worst)) return;
  offer(heap, value, index);
  worst = heap.value[0];
}

// Offer the rows of a slice to the heap of this thread's query.
__device__ void search_slice(const Matrix& queries, size_t query, const Matrix& bank, const Slice& slice,
                             const Heap& heap) {
  alignas(16) __shared__ float ranks[kTile][kPitch];
  const bool offers = heap.count > 0;
  float worst = INFINITY;
  if (offers) empty_heap(heap, INFINITY);
  for (size_t row = slice.first; row < slice.end; row += kTile) {
    rank(queries, query, bank, row, slice, ranks);
    __syncthreads();
    if (!offers) continue;
    for (int k = 0; k < kTile; k += kOwn) {
      const Lanes<kOwn> four = load<kOwn>(&ranks[threadIdx.x][k]);
#pragma unroll
      for (int j = 0; j < kOwn; ++j) offer_below(heap, four.v[j], static_cast<int>(row) + k + j, worst);
    }
  }
  // Equal ones in the order of their rows, as the merge takes them.
  if (offers) sort_heap(heap);
}

// Into a heap in the outputs by one thread, from what all bring to shared memory. What a slice has too few rows for
// is infinite, and not taken.
__device__ void merge_slices(const float* value, const int* index, int slices, size_t stride, const Heap& best) {
  __shared__ float values[kThreads];
  __shared__ int rows[kThreads];
  const size_t count = slices * best.count;
  float worst = INFINITY;
  if (threadIdx.x == 0) empty_heap(best, INFINITY);
  for (size_t from = 0; from < count; from += kThreads) {
    const size_t e = from + threadIdx.x, at = e / best.count * stride + e % best.count;
    __syncthreads();  // the ones before may still be read
    if (e < count) {
      values[threadIdx.x] = value[at];
      rows[threadIdx.x] = index[at];
    }
    __syncthreads();
    if (threadIdx.x != 0) continue;
    const size_t here = count - from < kThreads ? count - from : kThreads;
    for (size_t k = 0; k < here; ++k) offer_below(best, values[k], rows[k], worst);
  }
  __syncthreads();
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
    search_slice({queries, count, channels}, query, {bank, rows, channels}, {norms, first, end}, heap);
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
    merge_slices(value + query * k, ranked + query * k, slices, count * k, best);
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
