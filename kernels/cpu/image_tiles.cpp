// Compiled once per instruction set; see tiles.cpp for what may be used here.
#include "image_tiles.hpp"

#include "unblemish/log_penalty.hpp"
#include "unblemish/mixture_prior.hpp"
#include "unblemish/total_variation.hpp"

namespace unblemish::cpu::UNBLEMISH_ISA {
namespace {

using std::size_t;

// Pixels handled at once: a few buffers of this length and the rows they are of fit in L1.
constexpr size_t kStrip = 512;

size_t strip(size_t start, size_t count) { return count - start < kStrip ? count - start : kStrip; }

// inverse[i] <- 1 / ||n[i + offset] - n[i]||; returns the sum of the norms.
double inverse_norms(const float* n, size_t offset, const Plane& p, size_t count, float* UNBLEMISH_RESTRICT inverse) {
  for (size_t i = 0; i < count; ++i) inverse[i] = 0.0f;
  for (size_t c = 0; c < p.channels; ++c) {
    const float* row = n + c * p.size;
#pragma omp simd
    for (size_t i = 0; i < count; ++i) {
      const float d = row[i + offset] - row[i];
      inverse[i] += d * d;
    }
  }
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < count; ++i) {
    const float square = inverse[i];
    sum += sqrtf(square);
    inverse[i] = inverse_norm(square);
  }
  return sum;
}

// Inverse norms of one strip of a row; left[0] belongs to the pixel before the strip.
struct Inverses {
  alignas(64) float above[kStrip];
  alignas(64) float below[kStrip];
  alignas(64) float left[kStrip + 1];
};

// Where a pixel's neighbours lie; 0 where one is missing.
struct Offsets {
  size_t above, left, below, right;
};

void add_variation(const float* n, const Offsets& to, const Inverses& inverse, size_t first, size_t last,
                   float weight, float* UNBLEMISH_RESTRICT gradient) {
  const float* above = n - to.above;
  const float* left = n - to.left;
  const float* below = n + to.below;
  const float* right = n + to.right;
#pragma omp simd
  for (size_t i = first; i < last; ++i) {
    const Cross cross{n[i], above[i], left[i], below[i], right[i]};
    gradient[i] += weight * variation_slope(cross, {inverse.above[i], inverse.left[i], inverse.below[i],
                                                    inverse.left[i + 1]});
  }
}

// Columns [start, start + count) of row y: the norms to the right and below, then the derivative.
double variation_row(const VariationTile& t, const Plane& p, size_t y, size_t start, size_t count,
                     Inverses& inverse) {
  const size_t at = y * p.width + start;
  const bool ends = start + count == p.width;
  double sum = inverse_norms(t.n + at, 1, p, count - ends, inverse.left + 1);
  if (ends) inverse.left[count] = 0.0f;
  inverse.left[0] = 0.0f;
  if (start > 0) inverse_norms(t.n + at - 1, 1, p, 1, inverse.left);
  const size_t down = y + 1 < p.height ? p.width : 0;
  sum += inverse_norms(t.n + at, down, p, count, inverse.below);
  const Offsets inside{y > 0 ? p.width : 0, 1, down, 1};
  const size_t head = start == 0 ? 1 : 0, tail = ends && count > head ? count - 1 : count;
  for (size_t c = 0; c < p.channels; ++c) {
    const float* n = t.n + c * p.size + at;
    float* gradient = t.gradient + c * p.size + at;
    if (head) add_variation(n, {inside.above, 0, down, p.width > 1 ? 1u : 0u}, inverse, 0, 1, t.weight, gradient);
    add_variation(n, inside, inverse, head, tail, t.weight, gradient);
    if (tail < count) add_variation(n, {inside.above, 1, down, 0}, inverse, tail, count, t.weight, gradient);
  }
  return sum;
}

double total_variation(const VariationTile& t, const Plane& p, Band band) {
  Inverses inverse;
  double sum = 0.0;
  for (size_t s = 0; s < p.width; s += kStrip) {
    const size_t count = strip(s, p.width);
    if (band.first > 0)
      inverse_norms(t.n + (band.first - 1) * p.width + s, p.width, p, count, inverse.above);
    else
      for (size_t i = 0; i < count; ++i) inverse.above[i] = 0.0f;
    for (size_t y = band.first; y < band.last; ++y) {
      sum += variation_row(t, p, y, s, count, inverse);
      for (size_t i = 0; i < count; ++i) inverse.above[i] = inverse.below[i];
    }
  }
  return sum;
}

double penalty_strip(const PenaltyTile& t, Extent e) {
  alignas(64) float slope[kStrip] = {};
  for (size_t c = 0; c < e.channels; ++c) {
    const float* x = t.x + c * e.stride;
    const float* n = t.n + c * e.stride;
#pragma omp simd
    for (size_t i = 0; i < e.count; ++i) {
      const float a = n[i] - x[i];
      slope[i] += a * a;
    }
  }
  const unsigned char* free = t.free;
  const float epsilon = t.epsilon, weight = t.weight;
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < e.count; ++i) {
    const float square = slope[i];
    sum += free[i] != 0 ? log_penalty_value(square, epsilon) : 0.0f;
    slope[i] = weight * log_penalty_slope(square, epsilon);
  }
  for (size_t c = 0; c < e.channels; ++c) {
    const float* x = t.x + c * e.stride;
    const float* n = t.n + c * e.stride;
    float* UNBLEMISH_RESTRICT gradient = t.gradient + c * e.stride;
#pragma omp simd
    for (size_t i = 0; i < e.count; ++i) {
      const float moved = gradient[i] + slope[i] * (n[i] - x[i]);
      gradient[i] = free[i] != 0 ? moved : gradient[i];
    }
  }
  return sum;
}

double log_penalty(const PenaltyTile& t, Extent e) {
  double sum = 0.0;
  for (size_t s = 0; s < e.count; s += kStrip) {
    const PenaltyTile part{t.x + s, t.n + s, t.free + s, t.weight, t.epsilon, t.gradient + s};
    sum += penalty_strip(part, {e.channels, e.stride, strip(s, e.count)});
  }
  return sum;
}

double add_nearest(const PriorTile& t, const float* slope, const float* best, Extent e) {
  const unsigned char* free = t.free;
  const float twice = 2.0f * t.weight;
  for (size_t c = 0; c < e.channels; ++c) {
    float* UNBLEMISH_RESTRICT gradient = t.gradient + c * e.stride;
    const float* UNBLEMISH_RESTRICT half = slope + c * kStrip;
#pragma omp simd
    for (size_t i = 0; i < e.count; ++i) {
      const float moved = gradient[i] + twice * half[i];
      gradient[i] = free[i] != 0 ? moved : gradient[i];
    }
  }
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < e.count; ++i) sum += free[i] != 0 ? best[i] : 0.0f;
  return sum;
}

// The channels of a pixel held in registers; the nearest component so far, and its slope, in L1.
template <size_t Channels>
double prior_fused(const PriorTile& t, const Mixture& m, Extent e) {
  alignas(64) float best[kStrip];
  alignas(64) float slope[Channels * kStrip];
  for (size_t q = 0; q < m.components; ++q) {
    const float* mean = m.means + q * Channels;
    const float* precision = m.precisions + q * Channels * Channels;
    const float* n = t.n;
#pragma omp simd
    for (size_t i = 0; i < e.count; ++i) {
      float half[Channels];
      float distance = 0.0f;
      for (size_t c = 0; c < Channels; ++c) {
        half[c] = mixture_slope(n + i, e.stride, mean, precision, Channels, c);
        distance += half[c] * (n[c * e.stride + i] - mean[c]);
      }
      const bool nearer = q == 0 || is_nearer(distance, best[i]);
      best[i] = nearer ? distance : best[i];
      for (size_t c = 0; c < Channels; ++c) slope[c * kStrip + i] = nearer ? half[c] : slope[c * kStrip + i];
    }
  }
  return add_nearest(t, slope, best, e);
}

// Any number of channels, a pixel at a time.
double prior_any(const PriorTile& t, const Mixture& m, Extent e) {
  const float twice = 2.0f * t.weight;
  double sum = 0.0;
  for (size_t i = 0; i < e.count; ++i) {
    if (t.free[i] == 0) continue;
    float best = 0.0f;
    size_t nearest = 0;
    for (size_t q = 0; q < m.components; ++q) {
      const float* mean = m.means + q * e.channels;
      const float* precision = m.precisions + q * e.channels * e.channels;
      float distance = 0.0f;
      for (size_t c = 0; c < e.channels; ++c)
        distance += mixture_slope(t.n + i, e.stride, mean, precision, e.channels, c) * (t.n[c * e.stride + i] - mean[c]);
      if (q > 0 && !is_nearer(distance, best)) continue;
      best = distance;
      nearest = q;
    }
    sum += best;
    const float* mean = m.means + nearest * e.channels;
    const float* precision = m.precisions + nearest * e.channels * e.channels;
    for (size_t c = 0; c < e.channels; ++c)
      t.gradient[c * e.stride + i] += twice * mixture_slope(t.n + i, e.stride, mean, precision, e.channels, c);
  }
  return sum;
}

double mixture_prior(const PriorTile& t, const Mixture& m, Extent e) {
  double sum = 0.0;
  for (size_t s = 0; s < e.count; s += kStrip) {
    const PriorTile part{t.n + s, t.free + s, t.weight, t.gradient + s};
    const Extent extent{e.channels, e.stride, strip(s, e.count)};
    sum += e.channels == 1   ? prior_fused<1>(part, m, extent)
           : e.channels == 3 ? prior_fused<3>(part, m, extent)
                             : prior_any(part, m, extent);
  }
  return sum;
}

void adan(const AdanTile& t, const AdanStep& step, size_t count) {
  float* UNBLEMISH_RESTRICT n = t.n;
  const float* UNBLEMISH_RESTRICT x = t.x;
  const float* UNBLEMISH_RESTRICT g = t.g;
  float* UNBLEMISH_RESTRICT first = t.first;
  float* UNBLEMISH_RESTRICT slope = t.slope;
  float* UNBLEMISH_RESTRICT second = t.second;
  float* UNBLEMISH_RESTRICT previous = t.previous;
  const unsigned char* UNBLEMISH_RESTRICT free = t.free;
  const float rate = t.rate;
  const AdanStep s = step;
#pragma omp simd
  for (size_t i = 0; i < count; ++i) {
    AdanMoments m{first[i], slope[i], second[i], previous[i]};
    const float moved = adan_move(n[i], x[i], adan_direction(m, g[i], s), rate, s);
    first[i] = m.first;
    slope[i] = m.slope;
    second[i] = m.second;
    previous[i] = m.previous;
    n[i] = free[i] != 0 ? moved : n[i];
  }
}

}  // namespace

extern const ImageTiles image_tiles;
const ImageTiles image_tiles{total_variation, log_penalty, mixture_prior, adan};

}  // namespace unblemish::cpu::UNBLEMISH_ISA
