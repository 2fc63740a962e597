// Compiled once per instruction set; see tiles.cpp for what may be used here.
#include "energy_tiles.hpp"

#include "unblemish/gaussian_nll.hpp"
#include "unblemish/norms.hpp"

namespace unblemish::cpu::UNBLEMISH_ISA {
namespace {

using std::size_t;

constexpr size_t kStrip = 512;  // elements whose slopes and weights wait in L1

double nll_strip(const LikelihoodTile& t, Extent e) {
  alignas(64) float inverse[kStrip];
  alignas(64) float back[kStrip];
  const float* UNBLEMISH_RESTRICT log_scale = t.log_scale;
  const float channels = static_cast<float>(e.channels), scale = t.scale;
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < e.count; ++i) {
    inverse[i] = inverse_variance(log_scale[i]);
    back[i] = channels;
    sum += channels * log_scale[i];
  }
  for (size_t c = 0; c < e.channels; ++c) {
    const float* UNBLEMISH_RESTRICT x = t.x + c * e.stride;
    const float* UNBLEMISH_RESTRICT g = t.g + c * e.stride;
    float* UNBLEMISH_RESTRICT cotangent = t.cotangent + c * e.stride;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < e.count; ++i) {
      const float r = g[i] - x[i], slope = r * inverse[i];
      cotangent[i] = scale * slope;
      back[i] -= slope * r;
      sum += 0.5f * (slope * r);
    }
  }
  float* UNBLEMISH_RESTRICT out = t.log_scale_cotangent;
#pragma omp simd
  for (size_t i = 0; i < e.count; ++i) out[i] = scale * back[i];
  return sum;
}

double gaussian_nll(const LikelihoodTile& t, Extent e) {
  double sum = 0.0;
  for (size_t s = 0; s < e.count; s += kStrip) {
    const LikelihoodTile part{t.x + s,     t.g + s, t.log_scale + s, t.scale, t.cotangent + s,
                              t.log_scale_cotangent + s};
    sum += nll_strip(part, {e.channels, e.stride, e.count - s < kStrip ? e.count - s : kStrip});
  }
  return sum;
}

struct Strip {
  alignas(64) float slope[kStrip];
  alignas(64) float weight[kStrip];
};

void read_slopes(const EnergyTile& t, size_t start, size_t count, float* UNBLEMISH_RESTRICT slope) {
  const float* pulled = t.pulled + start;
  if (t.direct == nullptr) {
    for (size_t i = 0; i < count; ++i) slope[i] = pulled[i];
    return;
  }
  const float* direct = t.direct + start;
  const float factor = t.direct_factor;
#pragma omp simd
  for (size_t i = 0; i < count; ++i) slope[i] = pulled[i] + factor * direct[i];
}

void read_weights(const EnergyTile& t, size_t start, size_t count, float* UNBLEMISH_RESTRICT weight) {
  if (t.mask == nullptr) {
    for (size_t i = 0; i < count; ++i) weight[i] = 1.0f;
  } else {
    for (size_t i = 0; i < count; ++i) weight[i] = t.mask[start + i];
  }
  if (t.restored == nullptr) return;
  const float* x = t.x + start;
  const float* restored = t.restored + start;
#pragma omp simd
  for (size_t i = 0; i < count; ++i) {
    const float r = x[i] - restored[i];
    weight[i] *= r * r;
  }
}

template <bool Adam, bool Proximal, bool WeighStep>
void move_strip(const EnergyTile& t, const EnergyStep& step, size_t start, size_t count, const Strip& strip,
                EnergySums& sums) {
  float* UNBLEMISH_RESTRICT x = t.x + start;
  const float* UNBLEMISH_RESTRICT from = t.start + start;
  float* UNBLEMISH_RESTRICT first = Adam ? t.first + start : nullptr;
  float* UNBLEMISH_RESTRICT second = Adam ? t.second + start : nullptr;
  const float* UNBLEMISH_RESTRICT slope = strip.slope;
  const float* UNBLEMISH_RESTRICT weight = strip.weight;
  const EnergyStep s = step;
  double distance = 0.0, squared = 0.0;
  float largest = 0.0f;
#pragma omp simd reduction(+ : distance, squared) reduction(max : largest)
  for (size_t i = 0; i < count; ++i) {
    const float here = x[i], begin = from[i];
    const float g = energy_slope(slope[i], here, begin, s.lam, Proximal);
    float moved;
    if (Adam) {
      float m = first[i], v = second[i];
      moved = energy_place(here, begin, energy_adam(m, v, g, weight[i], s, WeighStep), s, Proximal);
      first[i] = m;
      second[i] = v;
    } else {
      moved = energy_place(here, begin, energy_plain(g, weight[i], s), s, Proximal);
    }
    distance += magnitude(here - begin);
    squared += square(moved - here);
    largest = larger(largest, magnitude(moved - here));
    x[i] = moved;
  }
  sums.distance += distance;
  sums.squared += squared;
  sums.largest = larger(sums.largest, largest);
}

using Move = void (*)(const EnergyTile&, const EnergyStep&, size_t, size_t, const Strip&, EnergySums&);

Move move_of(const EnergyTile& t, EnergyKind kind) {
  if (t.first == nullptr) return kind.proximal ? move_strip<false, true, false> : move_strip<false, false, false>;
  if (kind.weigh_step) return kind.proximal ? move_strip<true, true, true> : move_strip<true, false, true>;
  return kind.proximal ? move_strip<true, true, false> : move_strip<true, false, false>;
}

EnergySums step(const EnergyTile& t, const EnergyStep& constants, EnergyKind kind, size_t count) {
  Strip strip;
  EnergySums sums{0.0, 0.0, 0.0f};
  const Move move = move_of(t, kind);
  for (size_t s = 0; s < count; s += kStrip) {
    const size_t length = count - s < kStrip ? count - s : kStrip;
    read_slopes(t, s, length, strip.slope);
    read_weights(t, s, length, strip.weight);
    move(t, constants, s, length, strip, sums);
  }
  return sums;
}

}  // namespace

extern const EnergyTiles energy_tiles;
const EnergyTiles energy_tiles{gaussian_nll, step};

}  // namespace unblemish::cpu::UNBLEMISH_ISA
