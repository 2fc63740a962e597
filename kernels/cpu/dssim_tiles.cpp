// Compiled once per instruction set; see tiles.cpp for what may be used here.
//
// Rows stream through two windows: products of a row -> means along the row -> ring -> means down the
// columns -> slopes -> along the row -> ring -> down the columns -> gradient. Rows and columns beyond the
// image are those of its mirror image, so that nothing else need know where the image ends.
#include "dssim_tiles.hpp"

#include "lanes.hpp"

namespace unblemish::cpu::UNBLEMISH_ISA {
namespace {

using std::size_t;
using Index = long long;

// The four quantities of a row lie `stride` apart.
struct Rows {
  float* first;
  size_t stride;
  float* of(size_t row) const { return first + row * 4 * stride; }
};

// out <- sum over the taps of weights[k] * tap[k], for all four quantities.
void blur(const float* const* taps, const DssimWindow& w, size_t stride, size_t count, float* UNBLEMISH_RESTRICT out) {
  const size_t length = 2 * w.radius + 1;
  for (size_t i = 0; i < count; i += 2 * kLanes) {
    Lanes sum[4][2] = {};
    for (size_t k = 0; k < length; ++k) {
      const float weight = w.weights[k];
      const float* p = taps[k] + i;
      for (size_t q = 0; q < 4; ++q) {
        sum[q][0] += weight * load_lanes(p + q * stride);
        sum[q][1] += weight * load_lanes(p + q * stride + kLanes);
      }
    }
    for (size_t q = 0; q < 4; ++q) {
      store_lanes(out + q * stride + i, sum[q][0]);
      store_lanes(out + q * stride + i + kLanes, sum[q][1]);
    }
  }
}

void blur_along(const float* row, const DssimWindow& w, size_t stride, size_t count, float* out) {
  const float* taps[kMostTaps];
  for (size_t k = 0; k <= 2 * w.radius; ++k) taps[k] = row + k;
  blur(taps, w, stride, count, out);
}

// Down the columns of the ring, whose oldest row is number `oldest`.
void blur_down(const Rows& ring, size_t oldest, const DssimWindow& w, size_t count, float* out) {
  const float* taps[kMostTaps];
  const size_t length = 2 * w.radius + 1;
  for (size_t k = 0; k < length; ++k) taps[k] = ring.of((oldest + k) % length);
  blur(taps, w, ring.stride, count, out);
}

struct Line {
  float* d;
  float* u;
  float* dd;
  float* uu;

  Line(float* row, size_t stride) : d(row), u(row + stride), dd(row + 2 * stride), uu(row + 3 * stride) {}
  UNBLEMISH_HD DssimMeans at(size_t i) const { return {d[i], u[i], dd[i], uu[i]}; }
  UNBLEMISH_HD void put(size_t i, DssimMeans m) const {
    d[i] = m.d;
    u[i] = m.u;
    dd[i] = m.dd;
    uu[i] = m.uu;
  }
};

// Columns [start, start + count) of a row of the image and of its mirror images.
void products(const float* x, const float* g, Index start, size_t count, Index width, float anchor, const Line& out) {
  const Index end = start + static_cast<Index>(count), inside = start > 0 ? start : 0;
  const Index last = end < width ? end : width;
  for (Index v = start; v < end; ++v) {
    if (v == inside && last > inside) v = last;
    if (v >= end) break;
    const Index at = mirrored(v, width);
    out.put(static_cast<size_t>(v - start), dssim_products(x[at], g[at], anchor));
  }
  float* UNBLEMISH_RESTRICT d = out.d + (inside - start);
  float* UNBLEMISH_RESTRICT u = out.u + (inside - start);
  float* UNBLEMISH_RESTRICT dd = out.dd + (inside - start);
  float* UNBLEMISH_RESTRICT uu = out.uu + (inside - start);
  x += inside;
  g += inside;
#pragma omp simd
  for (Index i = 0; i < last - inside; ++i) {
    const DssimMeans m = dssim_products(x[i], g[i], anchor);
    d[i] = m.d;
    u[i] = m.u;
    dd[i] = m.dd;
    uu[i] = m.uu;
  }
}

// means -> their slopes, in place; values[i] <- (1 - SSIM) / 2.
void slopes(const Line& row, size_t count, float anchor, const DssimConstants& constants,
            float* UNBLEMISH_RESTRICT values) {
  float* UNBLEMISH_RESTRICT d = row.d;
  float* UNBLEMISH_RESTRICT u = row.u;
  float* UNBLEMISH_RESTRICT dd = row.dd;
  float* UNBLEMISH_RESTRICT uu = row.uu;
  const DssimConstants c = constants;
#pragma omp simd
  for (size_t i = 0; i < count; ++i) {
    const DssimTerm s = dssim_term({d[i], u[i], dd[i], uu[i]}, anchor, c);
    values[i] = s.value;
    d[i] = s.d;
    u[i] = s.u;
    dd[i] = s.dd;
    uu[i] = s.uu;
  }
}

// Sum of the values; adds their share to the map.
double keep_values(const float* values, size_t count, float share, float* UNBLEMISH_RESTRICT map, bool first) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < count; ++i) sum += values[i];
  if (map == nullptr) return sum;
  if (first) {
    for (size_t i = 0; i < count; ++i) map[i] = share * values[i];
  } else {
    for (size_t i = 0; i < count; ++i) map[i] += share * values[i];
  }
  return sum;
}

void gradients(const DssimTile& t, size_t at, const Line& back, size_t count, float anchor) {
  const float* x = t.x + at;
  const float* g = t.g + at;
  const float factor = t.factor;
  if (t.direct != nullptr) {
    float* UNBLEMISH_RESTRICT direct = t.direct + at;
#pragma omp simd
    for (size_t i = 0; i < count; ++i)
      direct[i] = dssim_gradient(back.at(i), dssim_products(x[i], g[i], anchor), factor).x;
  }
  if (t.cotangent != nullptr) {
    float* UNBLEMISH_RESTRICT cotangent = t.cotangent + at;
#pragma omp simd
    for (size_t i = 0; i < count; ++i)
      cotangent[i] = dssim_gradient(back.at(i), dssim_products(x[i], g[i], anchor), factor).g;
  }
}

double dssim_of_channel(const DssimTile& t, const Plane& p, const Patch& patch, const DssimWindow& w, size_t channel) {
  const size_t length = 2 * w.radius + 1, columns = patch.columns.last - patch.columns.first;
  const size_t stride = dssim_stride(columns, w.radius), image = channel * p.size;
  const size_t margin = t.has_gradient() ? w.radius : 0, wide = columns + 2 * margin;
  const Rows along{t.room, stride}, back{along.of(length), stride}, lines{back.of(length), stride};
  float* const read = lines.of(0);
  float* const means = lines.of(1);
  float* const spare = lines.of(2);
  const size_t middle = image + (patch.rows.first + patch.rows.last) / 2 * p.width +
                        (patch.columns.first + patch.columns.last) / 2;
  const float anchor = dssim_anchor(t.x[middle], t.g[middle], w.constants.range);
  const Index left = static_cast<Index>(patch.columns.first) - static_cast<Index>(margin + w.radius);
  const Index top = static_cast<Index>(patch.rows.first) - static_cast<Index>(margin + w.radius);
  const size_t rows = patch.rows.last - patch.rows.first + 2 * (margin + w.radius);
  const float share = 1.0f / static_cast<float>(p.channels);
  double sum = 0.0;
  for (size_t r = 0; r < rows; ++r) {
    const Index y = mirrored(top + static_cast<Index>(r), static_cast<Index>(p.height));
    const size_t row = image + static_cast<size_t>(y) * p.width;
    products(t.x + row, t.g + row, left, wide + 2 * w.radius, static_cast<Index>(p.width), anchor, Line(read, stride));
    blur_along(read, w, stride, wide, along.of(r % length));
    if (r + 1 < length) continue;
    const size_t s = r + 1 - length;  // row of means, counted from the first
    blur_down(along, s % length, w, wide, means);
    slopes(Line(means, stride), wide, anchor, w.constants, spare);
    if (s >= margin && s - margin < patch.rows.last - patch.rows.first) {
      const size_t at = (patch.rows.first + s - margin) * p.width + patch.columns.first;
      sum += keep_values(spare + margin, columns, share, t.map ? t.map + at : nullptr, channel == 0);
    }
    if (!t.has_gradient()) continue;
    blur_along(means, w, stride, columns, back.of(s % length));
    if (s + 1 < length) continue;
    const size_t out = s + 1 - length;
    blur_down(back, out % length, w, columns, spare);
    const size_t at = image + (patch.rows.first + out) * p.width + patch.columns.first;
    gradients(t, at, Line(spare, stride), columns, anchor);
  }
  return sum;
}

double dssim(const DssimTile& t, const Plane& p, const Patch& patch, const DssimWindow& w) {
  // What lies beyond a row's end is read, and must be numbers that do not slow arithmetic.
  const size_t room = dssim_room(patch.columns.last - patch.columns.first, w.radius);
  for (size_t i = 0; i < room; ++i) t.room[i] = 0.0f;
  double sum = 0.0;
  for (size_t c = 0; c < p.channels; ++c) sum += dssim_of_channel(t, p, patch, w, c);
  return sum;
}

}  // namespace

extern const DssimTiles dssim_tiles;
const DssimTiles dssim_tiles{dssim};

}  // namespace unblemish::cpu::UNBLEMISH_ISA
