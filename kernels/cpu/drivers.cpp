#include "drivers.hpp"

#include <atomic>
#include <stdexcept>

#include "blocks.hpp"
#include "unblemish/norms.hpp"
#include "unblemish/project_ball.hpp"

namespace unblemish::cpu {
namespace {

// With a mask of its own, every element is a one-channel pixel.
ImageShape as_masked(ImageShape s, bool shared) {
  return shared ? s : ImageShape{s.batch, 1, s.channels * s.plane};
}

std::size_t image_bytes(ImageShape s, std::size_t images) {
  return sizeof(float) * s.batch * s.channels * s.plane * images;
}

}  // namespace

const std::vector<const Tiles*>& runnable_tiles() {
  static const std::vector<const Tiles*> found = [] {
    std::vector<const Tiles*> tiles{&baseline::tiles};
#if defined(UNBLEMISH_HAS_AVX2) && defined(UNBLEMISH_HAS_AVX512)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
      return tiles;
    tiles.push_back(&avx2::tiles);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
      tiles.push_back(&avx512::tiles);
#endif
    return tiles;
  }();
  return found;
}

static const Tiles& find_tiles(const std::string& isa) {
  for (const Tiles* tiles : runnable_tiles())
    if (isa == tiles->isa) return *tiles;
  throw std::invalid_argument("this processor or build has no " + isa);
}

Engine::Engine(unsigned threads, const std::string& isa) : pool(threads), tiles(find_tiles(isa)) {}

void rgi_closed_form(Engine& engine, const RgiArrays& a, ImageShape shape, bool shared, float* mask, float* cotangent) {
  const ImageShape s = as_masked(shape, shared);
  const Cut cut(s.plane);
  const Tiles& tiles = engine.tiles;
  reduce_rows(engine.pool, s.batch, cut, image_bytes(s, 4), a.scale, a.objective, [&](std::size_t block) {
    const std::size_t b = cut.row(block), start = cut.start(block);
    const std::size_t image = b * s.channels * s.plane + start, row = b * s.plane + start;
    return tiles.rgi_closed_form({a.x + image, a.g + image, a.lam[b], a.scale[b], mask + row, cotangent + image},
                                 {s.channels, s.plane, cut.count(block)});
  });
}

void rgi_gradient(Engine& engine, const RgiArrays& a, ImageShape shape, bool shared, const float* mask,
                  float* cotangent, float* mask_gradient) {
  const ImageShape s = as_masked(shape, shared);
  const Cut cut(s.plane);
  const Tiles& tiles = engine.tiles;
  reduce_rows(engine.pool, s.batch, cut, image_bytes(s, 5), a.scale, a.objective, [&](std::size_t block) {
    const std::size_t b = cut.row(block), start = cut.start(block);
    const std::size_t image = b * s.channels * s.plane + start, row = b * s.plane + start;
    return tiles.rgi_gradient({a.x + image, a.g + image, mask + row, a.lam[b], a.scale[b], cotangent + image,
                               mask_gradient + row},
                              {s.channels, s.plane, cut.count(block)});
  });
}

void residual(Engine& engine, Loss loss, const ResidualArrays& a, ImageShape shape, Weight weight) {
  const ImageShape s = as_masked(shape, weight == Weight::shared);
  const Cut cut(s.plane);
  const auto tile = loss == Loss::l2 ? engine.tiles.residual_l2 : engine.tiles.residual_l1;
  reduce_rows(engine.pool, s.batch, cut, image_bytes(s, 4), a.scale, a.objective, [&](std::size_t block) {
    const std::size_t b = cut.row(block), start = cut.start(block);
    const std::size_t image = b * s.channels * s.plane + start, row = b * s.plane + start;
    const float* w = weight == Weight::none ? nullptr : a.weight + row;
    return tile({a.x + image, a.g + image, w, a.scale[b], a.cotangent + image},
                {s.channels, s.plane, cut.count(block)});
  });
}

void adam(Engine& engine, const AdamTile& a, const AdamStep& step, std::size_t count) {
  const Cut cut(count);
  const Tiles& tiles = engine.tiles;
  engine.pool.for_each(cut.per_row, sizeof(float) * count * 7, [&](std::size_t block) {
    const std::size_t i = cut.start(block);
    tiles.adam({a.p + i, a.grad + i, a.m + i, a.v + i}, step, cut.count(block));
  });
}

void project_ball(Engine& engine, float* p, const float* centre, const float* radius, std::size_t rows,
                  std::size_t length) {
  const Cut cut(length);
  const Tiles& tiles = engine.tiles;
  // The partial sums of reduce_rows take the first part of the same room.
  double* factor = workspace<double>(rows * cut.per_row + rows) + rows * cut.per_row;
  const std::size_t bytes = sizeof(float) * rows * length * 2;
  reduce_rows(engine.pool, rows, cut, bytes, nullptr, factor, [&](std::size_t block) {
    const std::size_t i = cut.row(block) * length + cut.start(block);
    return tiles.squared_distance(p + i, centre ? centre + i : nullptr, cut.count(block));
  });
  for (std::size_t row = 0; row < rows; ++row) factor[row] = ball_factor(factor[row], radius[row]);
  engine.pool.for_each(rows * cut.per_row, bytes, [&](std::size_t block) {
    const std::size_t i = cut.row(block) * length + cut.start(block);
    const double f = factor[cut.row(block)];
    if (f != 1.0) tiles.towards_centre(p + i, centre ? centre + i : nullptr, f, cut.count(block));
  });
}

void norms(Engine& engine, const float* x, std::size_t rows, std::size_t length, double* squared, double* largest) {
  const Cut cut(length);
  const Tiles& tiles = engine.tiles;
  Norms* partial = workspace<Norms>(rows * cut.per_row);
  engine.pool.for_each(rows * cut.per_row, sizeof(float) * rows * length, [&](std::size_t block) {
    partial[block] = tiles.norms(x + cut.row(block) * length + cut.start(block), cut.count(block));
  });
  for (std::size_t row = 0; row < rows; ++row) {
    Norms total{0.0, 0.0f};
    for (std::size_t k = row * cut.per_row; k < (row + 1) * cut.per_row; ++k) {
      total.squared += partial[k].squared;
      total.largest = larger(total.largest, partial[k].largest);
    }
    squared[row] = total.squared;
    largest[row] = largest_or_nan(total.squared, total.largest);
  }
}

bool all_finite(Engine& engine, const float* x, std::size_t count) {
  const Cut cut(count);
  const Tiles& tiles = engine.tiles;
  std::atomic<bool> finite{true};
  engine.pool.for_each(cut.per_row, sizeof(float) * count, [&](std::size_t block) {
    if (!finite.load(std::memory_order_relaxed)) return;
    if (!tiles.all_finite(x + cut.start(block), cut.count(block))) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load();
}

}  // namespace unblemish::cpu
