#include "energy_drivers.hpp"

#include "blocks.hpp"

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

}  // namespace unblemish::cpu
