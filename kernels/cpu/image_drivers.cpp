#include "image_drivers.hpp"

#include <cfloat>
#include <cmath>

#include "blocks.hpp"
#include "unblemish/sharing.hpp"

namespace unblemish::cpu {
namespace {

// Pixels of a band: the table's weights of all neighbours, and the padded images, stay in L2.
constexpr std::size_t kTablePixels = 1024;
constexpr std::size_t kBandPixels = 8192;
// Rows around a band are visited again: bands of wide images are at least so high.
constexpr std::size_t kLeastRows = 16;

// The copy of the tiles that the engine runs.
const ImageTiles& image_tiles([[maybe_unused]] const Engine& engine) {
#if defined(UNBLEMISH_HAS_AVX2) && defined(UNBLEMISH_HAS_AVX512)
  if (&engine.tiles == &avx512::tiles) return avx512::image_tiles;
  if (&engine.tiles == &avx2::tiles) return avx2::image_tiles;
#endif
  return baseline::image_tiles;
}

const SharingTiles& sharing_tiles([[maybe_unused]] const Engine& engine) {
#if defined(UNBLEMISH_HAS_AVX2) && defined(UNBLEMISH_HAS_AVX512)
  if (&engine.tiles == &avx512::tiles) return avx512::sharing_tiles;
  if (&engine.tiles == &avx2::tiles) return avx2::sharing_tiles;
#endif
  return baseline::sharing_tiles;
}

// Items cut into bands of `rows` rows.
struct Bands {
  std::size_t height;
  std::size_t rows;
  std::size_t per_item;

  Bands(const Plane& p, std::size_t pixels, std::size_t least)
      : height(p.height),
        rows(std::min(p.height, std::max(least, pixels / p.width))),
        per_item((p.height + rows - 1) / rows) {}
  std::size_t item(std::size_t block) const { return block / per_item; }
  Band band(std::size_t block) const {
    const std::size_t first = block % per_item * rows;
    return {first, std::min(first + rows, height)};
  }
};

std::size_t size_of(const Images& s) { return s.plane.channels * s.plane.size; }

// value[item] += weight[item] * sum of tile(block) over the item's blocks, in block order.
template <class Tile>
void add_sums(Pool& pool, const Images& s, std::size_t per_item, std::size_t images, const float* weight,
              double* value, const Tile& tile) {
  double* partial = workspace<double>(s.batch * per_item);
  const std::size_t bytes = sizeof(float) * s.batch * size_of(s) * images;
  pool.for_each(s.batch * per_item, bytes, [&](std::size_t block) { partial[block] = tile(block); });
  for (std::size_t b = 0; b < s.batch; ++b) value[b] += weight[b] * sum_in_order(partial + b * per_item, per_item);
}

Neighbours all_neighbours(const Plane& p, std::size_t radius) {
  return {radius, std::min(radius, p.height - 1), std::min(radius, p.width - 1)};
}

// Those whose weight is not 0 by their distance alone.
Neighbours near_neighbours(const Plane& p, std::size_t radius, const Sigmas& sigmas) {
  const double reach = std::sqrt(kLargestSpace * sigmas.space) * 1.000001;
  const std::size_t near = reach < static_cast<double>(radius) ? static_cast<std::size_t>(reach) : radius;
  const Neighbours all = all_neighbours(p, near);
  return {radius, all.rows, all.columns};
}

Falloff falloff(const Sigmas& sigmas) {
  const double largest = FLT_MAX;
  return {static_cast<float>(std::min(1.0 / sigmas.space, largest)),
          static_cast<float>(std::min(1.0 / sigmas.colour, largest))};
}

// What the pool takes for the size of a job in which every pixel meets all its neighbours.
std::size_t meetings(const Images& s, const Neighbours& near) {
  return sizeof(float) * s.batch * size_of(s) * (2 * near.rows + 1) * (2 * near.columns + 1);
}

}  // namespace

void total_variation(Engine& engine, const Images& s, const float* n, const float* weight, float* gradient,
                     double* value) {
  const Bands bands(s.plane, kBlock, 1);
  const ImageTiles& tiles = image_tiles(engine);
  add_sums(engine.pool, s, bands.per_item, 3, weight, value, [&](std::size_t block) {
    const std::size_t b = bands.item(block), image = b * size_of(s);
    return tiles.total_variation({n + image, weight[b], gradient + image}, s.plane, bands.band(block));
  });
}

void log_penalty(Engine& engine, const Images& s, const PenaltyTile& a, const float* weight, double* value) {
  const Cut cut(s.plane.size);
  const ImageTiles& tiles = image_tiles(engine);
  add_sums(engine.pool, s, cut.per_row, 4, weight, value, [&](std::size_t block) {
    const std::size_t b = cut.row(block), start = cut.start(block), image = b * size_of(s) + start;
    return tiles.log_penalty({a.x + image, a.n + image, a.free + b * s.plane.size + start, weight[b], a.epsilon,
                              a.gradient + image},
                             {s.plane.channels, s.plane.size, cut.count(block)});
  });
}

void mixture_prior(Engine& engine, const Images& s, const PriorTile& a, const Mixture& mixture, const float* weight,
                   double* value) {
  const Cut cut(s.plane.size);
  const ImageTiles& tiles = image_tiles(engine);
  add_sums(engine.pool, s, cut.per_row, 3, weight, value, [&](std::size_t block) {
    const std::size_t b = cut.row(block), start = cut.start(block), image = b * size_of(s) + start;
    return tiles.mixture_prior({a.n + image, a.free + b * s.plane.size + start, weight[b], a.gradient + image},
                               mixture, {s.plane.channels, s.plane.size, cut.count(block)});
  });
}

void sharing_weights(Engine& engine, const Images& s, const float* x, std::size_t radius, const Sigmas& sigmas,
                     Half* weights) {
  const Bands bands(s.plane, kTablePixels, 1);
  const Neighbours near = near_neighbours(s.plane, radius, sigmas);
  const Falloff fall = falloff(sigmas);
  const SharingTiles& tiles = sharing_tiles(engine);
  const std::size_t table = (2 * radius + 1) * (2 * radius + 1) * s.plane.size;
  engine.pool.for_each(s.batch * bands.per_item, meetings(s, near), [&](std::size_t block) {
    const std::size_t b = bands.item(block);
    float* room = workspace<float>(Room::of_weights(s.plane, bands.rows, near));
    tiles.weights({x + b * size_of(s), weights + b * table, room}, s.plane, bands.band(block), near, fall);
  });
}

void share_gradient(Engine& engine, const Images& s, const float* gradient, const Half* weights, std::size_t radius,
                    float* shared) {
  const Bands bands(s.plane, kBandPixels, kLeastRows);
  const Neighbours near = all_neighbours(s.plane, radius);
  const SharingTiles& tiles = sharing_tiles(engine);
  const std::size_t table = (2 * radius + 1) * (2 * radius + 1) * s.plane.size;
  engine.pool.for_each(s.batch * bands.per_item, meetings(s, near), [&](std::size_t block) {
    const std::size_t b = bands.item(block), image = b * size_of(s);
    float* room = workspace<float>(Room::of_share(s.plane, bands.rows, near));
    tiles.share({gradient + image, weights + b * table, shared + image, room}, s.plane, bands.band(block), near);
  });
}

void share_gradient_direct(Engine& engine, const Images& s, const float* gradient, const float* x,
                           std::size_t radius, const Sigmas& sigmas, float* shared) {
  const Bands bands(s.plane, kBandPixels, kLeastRows);
  const Neighbours near = near_neighbours(s.plane, radius, sigmas);
  const Falloff fall = falloff(sigmas);
  const SharingTiles& tiles = sharing_tiles(engine);
  engine.pool.for_each(s.batch * bands.per_item, meetings(s, near), [&](std::size_t block) {
    const std::size_t b = bands.item(block), image = b * size_of(s);
    float* room = workspace<float>(Room::of_direct(s.plane, bands.rows, near));
    tiles.direct({gradient + image, x + image, shared + image, room}, s.plane, bands.band(block), near, fall);
  });
}

void adan(Engine& engine, const Images& s, const AdanTile& a, const AdanStep& step, const float* rate) {
  const Cut cut(s.plane.size);
  const ImageTiles& tiles = image_tiles(engine);
  const std::size_t planes = s.batch * s.plane.channels;
  engine.pool.for_each(planes * cut.per_row, sizeof(float) * s.batch * size_of(s) * 12, [&](std::size_t block) {
    const std::size_t plane = cut.row(block), b = plane / s.plane.channels, start = cut.start(block);
    const std::size_t i = plane * s.plane.size + start;
    tiles.adan({a.n + i, a.x + i, a.g + i, a.first + i, a.slope + i, a.second + i, a.previous + i,
                a.free + b * s.plane.size + start, rate[b]},
               step, cut.count(block));
  });
}

}  // namespace unblemish::cpu
