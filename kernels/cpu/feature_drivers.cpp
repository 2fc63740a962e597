#include "feature_drivers.hpp"

#include <algorithm>
#include <limits>

#include "blocks.hpp"
#include "feature_tiles.hpp"
#include "unblemish/top_candidates.hpp"

namespace unblemish::cpu {
namespace {

constexpr std::size_t kCells = 8;       // places of one block: of every item, so that statistics are read once
constexpr std::size_t kQueryBlock = 96;  // queries of one block: with a panel of the bank, within the L2 cache
constexpr std::size_t kBankBytes = 4u << 20;  // of the bank that is packed at once

const FeatureTiles& feature_tiles_of(const Engine& engine) {
#if defined(UNBLEMISH_HAS_AVX2) && defined(UNBLEMISH_HAS_AVX512)
  if (&engine.tiles == &avx512::tiles) return avx512::feature_tiles;
  if (&engine.tiles == &avx2::tiles) return avx2::feature_tiles;
#else
  static_cast<void>(engine);
#endif
  return baseline::feature_tiles;
}

// Run tile(cell, place) -> score for every cell that counts; `statistics`: floats read for one of them.
template <class Tile>
void for_each_cell(Engine& engine, const CellArrays& a, std::size_t statistics, const Tile& tile) {
  const std::size_t blocks = (a.length + kCells - 1) / kCells;
  const std::size_t bytes = sizeof(float) * a.items * a.length * (statistics + 3 * a.channels);
  engine.pool.for_each(blocks, bytes, [&](std::size_t block) {
    const std::size_t end = std::min(a.length, (block + 1) * kCells);
    for (std::size_t at = block * kCells; at < end; ++at)
      for (std::size_t item = 0; item < a.items; ++item) {
        const std::size_t cell = item * a.length + at;
        if (a.cells[cell] >= 0) {
          a.scores[cell] = tile(cell, static_cast<std::size_t>(a.cells[cell]));
          continue;
        }
        a.scores[cell] = 0.0f;
        if (a.cotangent != nullptr) std::fill_n(a.cotangent + cell * a.channels, a.channels, 0.0f);
      }
  });
}

float* slope_of(const CellArrays& a, std::size_t cell) {
  return a.cotangent == nullptr ? nullptr : a.cotangent + cell * a.channels;
}

}  // namespace

void mahalanobis(Engine& engine, const CellArrays& a, const float* whitening) {
  const FeatureTiles& tiles = feature_tiles_of(engine);
  const std::size_t packed = a.channels * (a.channels + 1) / 2;
  for_each_cell(engine, a, packed, [&](std::size_t cell, std::size_t place) {
    return tiles.mahalanobis({a.f + cell * a.channels, a.mean + place * a.channels, whitening + place * packed,
                              (a.places - place) * packed, slope_of(a, cell)},
                             a.channels, workspace<float>(2 * (a.channels + tiles.lanes)));
  });
}

void mahalanobis_low_rank(Engine& engine, const CellArrays& a, const float* basis, const float* inverse_variance,
                          std::size_t rank) {
  const FeatureTiles& tiles = feature_tiles_of(engine);
  const std::size_t size = a.channels * rank;
  for_each_cell(engine, a, 2 * size, [&](std::size_t cell, std::size_t place) {
    return tiles.mahalanobis_low_rank({a.f + cell * a.channels, a.mean + place * a.channels, basis + place * size,
                                       (a.places - place) * size, inverse_variance[place], slope_of(a, cell)},
                                      a.channels, rank, workspace<float>(a.channels + rank + 2 * tiles.lanes));
  });
}

void nearest_candidate(Engine& engine, const NearestArrays& a) {
  const FeatureTiles& tiles = feature_tiles_of(engine);
  const std::size_t blocks = (a.cells + kCells - 1) / kCells;
  const std::size_t bytes = sizeof(float) * a.cells * a.channels * (a.k + 2);
  engine.pool.for_each(blocks, bytes, [&](std::size_t block) {
    const std::size_t end = std::min(a.cells, (block + 1) * kCells);
    for (std::size_t cell = block * kCells; cell < end; ++cell) {
      float* cotangent = a.cotangent == nullptr ? nullptr : a.cotangent + cell * a.channels;
      const NearestFound found = tiles.nearest_candidate(
          {a.f + cell * a.channels, a.bank, a.candidates + cell * a.k, a.k, cotangent}, a.channels);
      a.scores[cell] = found.distance;
      a.chosen[cell] = found.chosen;
    }
  });
}

void top_candidates(Engine& engine, const BankArrays& a) {
  const FeatureTiles& tiles = feature_tiles_of(engine);
  const std::size_t panels = std::max<std::size_t>(1, kBankBytes / (sizeof(float) * a.channels * tiles.panel));
  const std::size_t part = std::min(panels * tiles.panel, (a.rows + tiles.panel - 1) / tiles.panel * tiles.panel);
  float* packed = workspace<float>(part * (a.channels + 1));
  float* own_norms = packed + part * a.channels;
  const std::size_t blocks = (a.count + kQueryBlock - 1) / kQueryBlock;
  const auto queries = [&](std::size_t block) {
    const std::size_t first = block * kQueryBlock;
    return QueryTile{a.queries + first * a.channels, std::min(kQueryBlock, a.count - first), a.channels,
                     a.distances + first * a.k,      a.index + first * a.k,                  a.k};
  };
  for (std::size_t q = 0; q < a.count; ++q)
    empty_heap({a.distances + q * a.k, a.index + q * a.k, a.k}, std::numeric_limits<float>::infinity());
  for (std::size_t first = 0; first < a.rows; first += part) {
    const std::size_t rows = std::min(part, a.rows - first);
    const float* bank = a.bank + first * a.channels;
    const std::size_t pieces = (rows + tiles.panel - 1) / tiles.panel;
    engine.pool.for_each(pieces, sizeof(float) * 2 * rows * a.channels, [&](std::size_t piece) {
      const std::size_t start = piece * tiles.panel, count = std::min(tiles.panel, rows - start);
      tiles.pack_bank(bank + start * a.channels, count, a.channels, packed + start * a.channels);
      if (a.norms == nullptr) tiles.norms(bank + start * a.channels, count, a.channels, own_norms + start);
    });
    const BankPart ready{packed, a.norms == nullptr ? own_norms : a.norms + first, first, rows};
    engine.pool.for_each(blocks, sizeof(float) * a.count * rows * a.channels / 16,
                         [&](std::size_t block) { tiles.rank_part(queries(block), ready); });
  }
  engine.pool.for_each(blocks, sizeof(float) * a.count * a.k * a.channels,
                       [&](std::size_t block) { tiles.settle(queries(block), a.bank); });
}

}  // namespace unblemish::cpu
