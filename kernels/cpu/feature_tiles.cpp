// Compiled once per instruction set (UNBLEMISH_ISA). Only bodies from include/unblemish and lanes.hpp
// may be used here: a function template of the standard library would be shared between the copies.
#include "feature_tiles.hpp"

#include "lanes.hpp"
#include "unblemish/mahalanobis.hpp"
#include "unblemish/mahalanobis_low_rank.hpp"
#include "unblemish/nearest_candidate.hpp"
#include "unblemish/top_candidates.hpp"

namespace unblemish::cpu::UNBLEMISH_ISA {
namespace {

using std::size_t;

constexpr size_t kRows = 4;  // of W taken at once: they share the loads of d and of the cotangent
// Floats ahead of those at work that are asked for: statistics are read once, in order, and the hardware
// does not look beyond a page of 4 KiB. Measured: 8 KiB ahead takes half the time of no asking.
constexpr size_t kAhead = 2048;

// d = f - mean, filled up with zeros to whole registers.
void difference(const float* f, const float* mean, size_t channels, float* UNBLEMISH_RESTRICT d) {
  const size_t padded = padded_lanes(channels);
#pragma omp simd
  for (size_t i = 0; i < channels; ++i) d[i] = f[i] - mean[i];
  for (size_t i = channels; i < padded; ++i) d[i] = 0.0f;
}

// Rows [first, first + Count) of W, all within one group of kLanes rows, so that they share the number
// of whole registers. Adds t_i W_i to `slope` (without the factor 2) where it is not nullptr.
template <size_t Count>
double whitened_rows(const MahalanobisTile& tile, size_t first, const float* d, float* UNBLEMISH_RESTRICT slope) {
  const size_t whole = whole_lanes(first);
  const float* row[Count];
  Lanes last[Count];
  Lanes sum[Count];
  for (size_t r = 0; r < Count; ++r) {
    const size_t start = packed_start(first + r);
    row[r] = tile.whitening + start;
    last[r] = load_first(row[r] + whole, first + r + 1 - whole, tile.readable - start - whole);
    sum[r] = last[r] * load_lanes(d + whole);
  }
  for (size_t i = 0; i < whole; i += kLanes) {
    const Lanes here = load_lanes(d + i);
    for (size_t r = 0; r < Count; ++r) {
      prefetch(row[r] + i + kAhead);
      sum[r] += load_lanes(row[r] + i) * here;
    }
  }
  double squares = 0.0;
  float t[Count];
  for (size_t r = 0; r < Count; ++r) {
    t[r] = sum_lanes(sum[r]);
    squares += whitened_square(t[r]);
  }
  if (slope == nullptr) return squares;
  for (size_t i = 0; i < whole; i += kLanes) {
    Lanes here = load_lanes(slope + i);
    for (size_t r = 0; r < Count; ++r) here += load_lanes(row[r] + i) * t[r];
    store_lanes(slope + i, here);
  }
  Lanes here = load_lanes(slope + whole);
  for (size_t r = 0; r < Count; ++r) here += last[r] * t[r];
  store_lanes(slope + whole, here);
  return squares;
}

float mahalanobis(const MahalanobisTile& tile, size_t channels, float* room) {
  const size_t padded = padded_lanes(channels);
  float* d = room;
  float* slope = tile.cotangent == nullptr ? nullptr : room + padded;
  difference(tile.f, tile.mean, channels, d);
  if (slope != nullptr)
    for (size_t i = 0; i < padded; ++i) slope[i] = 0.0f;
  double squares = 0.0;
  size_t row = 0;
  for (; row + kRows <= channels; row += kRows) squares += whitened_rows<kRows>(tile, row, d, slope);
  for (; row < channels; ++row) squares += whitened_rows<1>(tile, row, d, slope);
  if (slope != nullptr)
    for (size_t i = 0; i < channels; ++i) tile.cotangent[i] = 2.0f * slope[i];
  return static_cast<float>(squares);
}

// B^T d, filled up with zeros: one register of directions at a time, all channels.
void along_basis(const LowRankTile& tile, size_t channels, size_t rank, const float* d, float* along) {
  for (size_t r = 0; r < rank; r += kLanes) {
    const float* column = tile.basis + r;
    const size_t count = rank - r < kLanes ? rank - r : kLanes;
    // Rows from `safe` on may end the array; before, whole registers can be read.
    size_t safe = channels;
    while (safe > 0 && (safe - 1) * rank + r + kLanes > tile.readable) --safe;
    Lanes sum[kRows] = {};
    size_t c = 0;
    for (; c + kRows <= safe; c += kRows)
      for (size_t k = 0; k < kRows; ++k) {
        prefetch(column + (c + k) * rank + kAhead);
        sum[k] += load_lanes(column + (c + k) * rank) * d[c + k];
      }
    for (; c < channels; ++c)
      sum[0] += load_first(column + c * rank, count, tile.readable - c * rank - r) * d[c];
    store_lanes(along + r, kept_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]), first_lanes(count)));
  }
}

float mahalanobis_low_rank(const LowRankTile& tile, size_t channels, size_t rank, float* room) {
  float* d = room;
  float* along = room + padded_lanes(channels);
  difference(tile.f, tile.mean, channels, d);
  along_basis(tile, channels, rank, d, along);
  const size_t whole = whole_lanes(rank);
  double sum = 0.0;
  for (size_t c = 0; c < channels; ++c) {
    const float* row = tile.basis + c * rank;
    Lanes products = {};
    for (size_t r = 0; r < whole; r += kLanes) products += load_lanes(row + r) * load_lanes(along + r);
    if (whole < rank)
      products += load_first(row + whole, rank - whole, tile.readable - c * rank - whole) * load_lanes(along + whole);
    const float rest = d[c] - sum_lanes(products);
    sum += rest_value(d[c], rest);
    if (tile.cotangent != nullptr) tile.cotangent[c] = rest_cotangent(rest, tile.inverse_variance);
  }
  return static_cast<float>(sum * tile.inverse_variance);
}

// ||a - b||^2, or anything above `limit` where it is above.
float squared_distance_below(const float* a, const float* b, size_t channels, float limit) {
  constexpr size_t kStep = 4 * kLanes;
  Lanes sum[4] = {};
  size_t c = 0;
  for (; c + kStep <= channels; c += kStep) {
    for (size_t k = 0; k < 4; ++k) {
      const Lanes d = load_lanes(a + c + k * kLanes) - load_lanes(b + c + k * kLanes);
      sum[k] += d * d;
    }
    if (c % (2 * kStep) != 0) {  // every other step
      const float partial = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
      if (partial > limit) return partial;
    }
  }
  for (; c + kLanes <= channels; c += kLanes) {
    const Lanes d = load_lanes(a + c) - load_lanes(b + c);
    sum[0] += d * d;
  }
  float total = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; c < channels; ++c) total += (a[c] - b[c]) * (a[c] - b[c]);
  return total;
}

NearestFound nearest_candidate(const NearestTile& tile, size_t channels) {
  Nearest best{INFINITY, -1};
  for (size_t k = 0; k < tile.count && tile.candidates[k] >= 0; ++k) {
    const int row = tile.candidates[k];
    consider(best, squared_distance_below(tile.f, tile.bank + row * channels, channels, best.distance), row);
  }
  if (best.chosen < 0) best.distance = 0.0f;
  if (tile.cotangent != nullptr) {
    const float* m = tile.bank + static_cast<size_t>(best.chosen < 0 ? 0 : best.chosen) * channels;
    for (size_t c = 0; c < channels; ++c)
      tile.cotangent[c] = best.chosen < 0 ? 0.0f : nearest_cotangent(tile.f[c], m[c]);
  }
  return {best.distance, best.chosen};
}

// Queries and registers of bank rows in one block of products: as many sums as there are registers for.
#if defined(__AVX512F__)
constexpr size_t kQueries = 12;
#else
constexpr size_t kQueries = 6;
#endif
constexpr size_t kWide = 2;
constexpr size_t kPanel = kWide * kLanes;

void pack_bank(const float* bank, size_t rows, size_t channels, float* packed) {
  for (size_t first = 0; first < rows; first += kPanel) {
    for (size_t c = 0; c < channels; ++c)
      for (size_t k = 0; k < kPanel; ++k)
        packed[c * kPanel + k] = first + k < rows ? bank[(first + k) * channels + c] : 0.0f;
    packed += channels * kPanel;
  }
}

void norms(const float* bank, size_t rows, size_t channels, float* norms) {
  for (size_t row = 0; row < rows; ++row) {
    const float* m = bank + row * channels;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (size_t c = 0; c < channels; ++c) sum += m[c] * m[c];
    norms[row] = sum;
  }
}

// Products of kQueries queries with the rows of one panel.
void products(const float* const* queries, const float* UNBLEMISH_RESTRICT panel, size_t channels,
              Lanes (&sum)[kQueries][kWide]) {
  for (size_t c = 0; c < channels; ++c) {
    Lanes m[kWide];
    for (size_t w = 0; w < kWide; ++w) m[w] = load_lanes(panel + c * kPanel + w * kLanes);
#pragma GCC unroll 12
    for (size_t q = 0; q < kQueries; ++q)
#pragma GCC unroll 2
      for (size_t w = 0; w < kWide; ++w) sum[q][w] += m[w] * queries[q][c];
  }
}

void offer_panel(const Heap& heap, const Lanes (&sum)[kWide], const float* norms, size_t first, size_t rows) {
  for (size_t w = 0; w < kWide && w * kLanes < rows; ++w) {
    const size_t count = rows - w * kLanes < kLanes ? rows - w * kLanes : kLanes;
    const Lanes rank = load_first(norms + w * kLanes, count, rows - w * kLanes) - 2.0f * sum[w];
    if (!any_less(rank, heap.value[0])) continue;
    float each[kLanes];
    store_lanes(each, rank);
    for (size_t k = 0; k < count; ++k) offer(heap, each[k], static_cast<int>(first + w * kLanes + k));
  }
}

void rank_part(const QueryTile& tile, const BankPart& part) {
  for (size_t row = 0; row < part.rows; row += kPanel) {
    const float* panel = part.packed + row * tile.channels;
    const size_t rows = part.rows - row < kPanel ? part.rows - row : kPanel;
    for (size_t first = 0; first < tile.count; first += kQueries) {
      const float* queries[kQueries];  // the last group repeats its last query
      const size_t count = tile.count - first < kQueries ? tile.count - first : kQueries;
      for (size_t q = 0; q < kQueries; ++q)
        queries[q] = tile.queries + (first + (q < count ? q : count - 1)) * tile.channels;
      Lanes sum[kQueries][kWide] = {};
      products(queries, panel, tile.channels, sum);
      for (size_t q = 0; q < count; ++q) {
        const size_t slot = (first + q) * tile.k;
        offer_panel({tile.distances + slot, tile.index + slot, tile.k}, sum[q], part.norms + row, part.first + row,
                    rows);
      }
    }
  }
}

void settle(const QueryTile& tile, const float* bank) {
  for (size_t q = 0; q < tile.count; ++q) {
    const Heap heap{tile.distances + q * tile.k, tile.index + q * tile.k, tile.k};
    for (size_t k = 0; k < tile.k; ++k)
      heap.value[k] = squared_distance_below(tile.queries + q * tile.channels,
                                             bank + static_cast<size_t>(heap.index[k]) * tile.channels,
                                             tile.channels, INFINITY);
    sort_heap(heap);
  }
}

}  // namespace

extern const FeatureTiles feature_tiles;
const FeatureTiles feature_tiles{kLanes,    kPanel, mahalanobis, mahalanobis_low_rank, nearest_candidate,
                                 pack_bank, norms,  rank_part,   settle};

}  // namespace unblemish::cpu::UNBLEMISH_ISA
