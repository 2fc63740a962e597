#include "energy_drivers.hpp"

#include "blocks.hpp"
#include "unblemish/norms.hpp"

namespace unblemish::cpu {
namespace {

// Sides of a patch, about: the rows around it are visited again, and its rings stay in L2.
constexpr std::size_t kPatchRows = 64;
constexpr std::size_t kPatchColumns = 512;

const DssimTiles& dssim_tiles([[maybe_unused]] const Engine& engine) {
#if defined(UNBLEMISH_HAS_AVX2) && defined(UNBLEMISH_HAS_AVX512)
  if (&engine.tiles == &avx512::tiles) return avx512::dssim_tiles;
  if (&engine.tiles == &avx2::tiles) return avx2::dssim_tiles;
#endif
  return baseline::dssim_tiles;
}

const EnergyTiles& energy_tiles([[maybe_unused]] const Engine& engine) {
#if defined(UNBLEMISH_HAS_AVX2) && defined(UNBLEMISH_HAS_AVX512)
  if (&engine.tiles == &avx512::tiles) return avx512::energy_tiles;
  if (&engine.tiles == &avx2::tiles) return avx2::energy_tiles;
#endif
  return baseline::energy_tiles;
}

template <class T>
T* moved(T* p, std::size_t count) {
  return p == nullptr ? nullptr : p + count;
}

// The tile of the elements from `i` on, whose mask starts at `mask`.
EnergyTile part(const EnergyTile& t, std::size_t i, std::size_t mask) {
  return {t.x + i,
          t.start + i,
          t.pulled + i,
          moved(t.direct, i),
          t.direct_factor,
          moved(t.mask, mask),
          moved(t.restored, i),
          moved(t.first, i),
          moved(t.second, i)};
}

// A side cut into pieces of nearly `about` each.
struct Pieces {
  std::size_t length;
  std::size_t count;

  Pieces(std::size_t length, std::size_t about)
      : length(length), count(std::max<std::size_t>(1, (length + about / 2) / about)) {}
  Band piece(std::size_t k) const { return {k * length / count, (k + 1) * length / count}; }
  std::size_t longest() const { return (length + count - 1) / count; }
};

}  // namespace

void dssim(Engine& engine, const Images& s, const DssimArrays& a, double range, std::size_t radius, double sigma) {
  const Pieces rows(s.plane.height, kPatchRows), columns(s.plane.width, kPatchColumns);
  const std::size_t per_item = rows.count * columns.count, size = s.plane.channels * s.plane.size;
  const std::size_t taps = 2 * radius + 1;
  float window[kMostTaps];
  gaussian_window(static_cast<int>(radius), sigma, window);
  const DssimTiles& tiles = dssim_tiles(engine);
  const float channels = static_cast<float>(s.plane.channels);
  double* partial = workspace<double>(s.batch * per_item);
  engine.pool.for_each(s.batch * per_item, sizeof(float) * s.batch * size * taps, [&](std::size_t block) {
    const std::size_t b = block / per_item, k = block % per_item, image = b * size;
    float* room = workspace<float>(dssim_room(columns.longest(), radius));
    const DssimTile tile{a.x + image,
                         a.g + image,
                         a.scale[b] / channels,
                         a.map ? a.map + b * s.plane.size : nullptr,
                         a.direct ? a.direct + image : nullptr,
                         a.cotangent ? a.cotangent + image : nullptr,
                         room};
    const Patch patch{rows.piece(k / columns.count), columns.piece(k % columns.count)};
    partial[block] = tiles.dssim(tile, s.plane, patch, {window, radius, dssim_constants(range)});
  });
  for (std::size_t b = 0; b < s.batch; ++b)
    a.objective[b] = sum_in_order(partial + b * per_item, per_item) * (a.scale[b] / s.plane.channels);
}

void gaussian_nll(Engine& engine, const Images& s, bool shared, const LikelihoodArrays& a) {
  const std::size_t channels = shared ? s.plane.channels : 1;
  const std::size_t size = s.plane.channels * s.plane.size, row = size / channels;
  const Cut cut(row);
  const EnergyTiles& tiles = energy_tiles(engine);
  reduce_rows(engine.pool, s.batch, cut, sizeof(float) * s.batch * size * 5, a.scale, a.objective,
              [&](std::size_t block) {
                const std::size_t b = cut.row(block), i = b * size + cut.start(block), k = b * row + cut.start(block);
                const LikelihoodTile& t = a.tile;
                return tiles.gaussian_nll({t.x + i, t.g + i, t.log_scale + k, a.scale[b], t.cotangent + i,
                                           t.log_scale_cotangent + k},
                                          {channels, row, cut.count(block)});
              });
}

void energy_step(Engine& engine, const Images& s, const EnergyArrays& a, const AdamStep& adam, EnergyKind kind) {
  const Cut cut(s.plane.size);
  const EnergyTiles& tiles = energy_tiles(engine);
  const std::size_t per_item = s.plane.channels * cut.per_row, blocks = s.batch * per_item;
  EnergySums* partial = workspace<EnergySums>(blocks);
  engine.pool.for_each(blocks, sizeof(float) * s.batch * s.plane.channels * s.plane.size * 8, [&](std::size_t block) {
    const std::size_t plane = cut.row(block), b = plane / s.plane.channels, start = cut.start(block);
    const std::size_t row = a.shared_mask ? b : plane;
    const EnergyTile tile = part(a.tile, plane * s.plane.size + start, row * s.plane.size + start);
    partial[block] = tiles.step(tile, {a.lam[b], a.rate[b], adam}, kind, cut.count(block));
  });
  for (std::size_t b = 0; b < s.batch; ++b) {
    EnergySums total{0.0, 0.0, 0.0f};
    for (std::size_t k = b * per_item; k < (b + 1) * per_item; ++k) {
      total.distance += partial[k].distance;
      total.squared += partial[k].squared;
      total.largest = larger(total.largest, partial[k].largest);
    }
    a.l1[b] = a.lam[b] * total.distance;
    a.squared_change[b] = total.squared;
    a.largest_change[b] = largest_or_nan(total.squared, total.largest);
  }
}

}  // namespace unblemish::cpu
