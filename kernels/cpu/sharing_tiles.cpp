// Compiled once per instruction set; see tiles.cpp for what may be used here.
#include "sharing_tiles.hpp"

#include "half_rows.hpp"
#include "unblemish/sharing.hpp"

namespace unblemish::cpu::UNBLEMISH_ISA {
namespace {

using std::ptrdiff_t;
using std::size_t;

constexpr size_t kStrip = 256;  // pixels handled at once
constexpr size_t kGroup = 4;    // neighbours added at once

size_t strip(size_t start, size_t count) { return count - start < kStrip ? count - start : kStrip; }

// d^2 / sigma_space, or a negative number where the neighbour does not count.
float space_of(ptrdiff_t dy, ptrdiff_t dx, const Falloff& f) {
  const float space = static_cast<float>(dy * dy + dx * dx) * f.inverse_sigma_space;
  return space <= kLargestSpace ? space : -1.0f;
}

// moved[(y - (first - rows)) * width + x] <- image[y, x + dx] for the rows of the band and `rows` around
// it; `outside` where the image has no such pixel.
void move_columns(const float* image, const Plane& p, Band band, size_t rows, ptrdiff_t dx, float outside,
                  float* UNBLEMISH_RESTRICT moved) {
  const size_t begin = dx < 0 ? static_cast<size_t>(-dx) : 0;
  const size_t end = dx > 0 ? p.width - static_cast<size_t>(dx) : p.width;
  for (size_t line = 0; line < band.last - band.first + 2 * rows; ++line, moved += p.width) {
    const size_t y = band.first + line - rows;  // wraps round above the image
    const bool inside = y < p.height;
    const float* row = image + (inside ? y : 0) * p.width;
    for (size_t x = 0; x < begin; ++x) moved[x] = outside;
    if (inside)
      for (size_t x = begin; x < end; ++x) moved[x] = row[static_cast<ptrdiff_t>(x) + dx];
    else
      for (size_t x = begin; x < end; ++x) moved[x] = outside;
    for (size_t x = end; x < p.width; ++x) moved[x] = outside;
  }
}

// w <- the weight of one neighbour, total += w.
void weigh(const float* x, const float* moved, size_t channels, size_t stride, size_t moved_stride, float space,
           float inverse_sigma, size_t count, float* UNBLEMISH_RESTRICT w, float* UNBLEMISH_RESTRICT total) {
  for (size_t i = 0; i < count; ++i) w[i] = 0.0f;
  for (size_t c = 0; c < channels; ++c) {
    const float* UNBLEMISH_RESTRICT here = x + c * stride;
    const float* UNBLEMISH_RESTRICT there = moved + c * moved_stride;
#pragma omp simd
    for (size_t i = 0; i < count; ++i) {
      const float d = there[i] - here[i];
      w[i] += d * d;
    }
  }
#pragma omp simd
  for (size_t i = 0; i < count; ++i) {
    const float weight = sharing_weight(w[i], space, inverse_sigma);
    w[i] = weight;
    total[i] += weight;
  }
}

// The table's rows of the band from the weights found: `found` has one plane for each that counts.
void write_table(const WeightsTile& t, const Plane& p, Band band, const Neighbours& near, const Falloff& f,
                 const float* found, const float* total) {
  const size_t count = (band.last - band.first) * p.width, side = 2 * near.radius + 1;
  const ptrdiff_t r = static_cast<ptrdiff_t>(near.radius);
  const ptrdiff_t rows = static_cast<ptrdiff_t>(near.rows), columns = static_cast<ptrdiff_t>(near.columns);
  alignas(64) float normal[kStrip];
  for (size_t k = 0; k < side * side; ++k) {
    const ptrdiff_t dy = static_cast<ptrdiff_t>(k / side) - r, dx = static_cast<ptrdiff_t>(k % side) - r;
    Half* out = t.weights + k * p.size + band.first * p.width;
    if (dy < -rows || dy > rows || dx < -columns || dx > columns || space_of(dy, dx, f) < 0.0f) {
      for (size_t i = 0; i < count; ++i) out[i] = 0;
      continue;
    }
    const size_t slot = static_cast<size_t>((dx + columns) * (2 * rows + 1) + dy + rows);
    for (size_t s = 0; s < count; s += kStrip) {
      const float* UNBLEMISH_RESTRICT w = found + slot * count + s;
      const size_t length = strip(s, count);
#pragma omp simd
      for (size_t i = 0; i < length; ++i) normal[i] = w[i] / total[s + i];
      narrow(normal, out + s, length);
    }
  }
}

void weights(const WeightsTile& t, const Plane& p, Band band, const Neighbours& near, const Falloff& f) {
  const size_t count = (band.last - band.first) * p.width;
  const size_t moved_stride = count + 2 * near.rows * p.width;
  float* moved = t.room;
  float* total = moved + p.channels * moved_stride;
  float* found = total + count;
  for (size_t i = 0; i < count; ++i) total[i] = 0.0f;
  const ptrdiff_t rows = static_cast<ptrdiff_t>(near.rows), columns = static_cast<ptrdiff_t>(near.columns);
  float* w = found;
  for (ptrdiff_t dx = -columns; dx <= columns; ++dx) {
    for (size_t c = 0; c < p.channels; ++c)
      move_columns(t.x + c * p.size, p, band, near.rows, dx, HUGE_VALF, moved + c * moved_stride);
    for (ptrdiff_t dy = -rows; dy <= rows; ++dy, w += count) {
      const float space = space_of(dy, dx, f);
      if (space < 0.0f) continue;
      weigh(t.x + band.first * p.width, moved + static_cast<size_t>(dy + rows) * p.width, p.channels, p.size,
            moved_stride, space, f.inverse_sigma_colour, count, w, total);
    }
  }
  write_table(t, p, band, near, f, found, total);
}

// shared[i] += sum over `Count` neighbours of w g, whose rows lie `step` apart in g.
template <size_t Count>
void add_neighbours(const float* UNBLEMISH_RESTRICT w, const float* UNBLEMISH_RESTRICT g, size_t step, size_t count,
                    float* UNBLEMISH_RESTRICT shared) {
#pragma omp simd
  for (size_t i = 0; i < count; ++i) {
    float sum = shared[i];
    for (size_t k = 0; k < Count; ++k) sum += w[k * kStrip + i] * g[k * step + i];
    shared[i] = sum;
  }
}

using AddNeighbours = void (*)(const float*, const float*, size_t, size_t, float*);
constexpr AddNeighbours kAdd[kGroup] = {add_neighbours<1>, add_neighbours<2>, add_neighbours<3>, add_neighbours<4>};

// The neighbours of one column offset, `k` the first of them.
void share_column(const ShareTile& t, const Plane& p, Band band, const Neighbours& near, size_t k,
                  size_t moved_stride) {
  const size_t count = (band.last - band.first) * p.width, side = 2 * near.radius + 1;
  const size_t at = band.first * p.width, number = 2 * near.rows + 1;
  alignas(64) float w[kGroup * kStrip];
  for (size_t s = 0; s < count; s += kStrip) {
    const size_t length = strip(s, count);
    for (size_t line = 0; line < number; line += kGroup) {
      const size_t group = number - line < kGroup ? number - line : kGroup;
      for (size_t j = 0; j < group; ++j)
        widen(t.weights + (k + (line + j) * side) * p.size + at + s, w + j * kStrip, length);
      for (size_t c = 0; c < p.channels; ++c)
        kAdd[group - 1](w, t.room + c * moved_stride + line * p.width + s, p.width, length,
                        t.shared + c * p.size + at + s);
    }
  }
}

void share(const ShareTile& t, const Plane& p, Band band, const Neighbours& near) {
  const size_t count = (band.last - band.first) * p.width, side = 2 * near.radius + 1;
  const size_t moved_stride = count + 2 * near.rows * p.width;
  for (size_t c = 0; c < p.channels; ++c)
    for (size_t i = 0; i < count; ++i) t.shared[c * p.size + band.first * p.width + i] = 0.0f;
  const ptrdiff_t columns = static_cast<ptrdiff_t>(near.columns);
  for (ptrdiff_t dx = -columns; dx <= columns; ++dx) {
    for (size_t c = 0; c < p.channels; ++c)
      move_columns(t.gradient + c * p.size, p, band, near.rows, dx, 0.0f, t.room + c * moved_stride);
    const size_t column = static_cast<size_t>(dx + static_cast<ptrdiff_t>(near.radius));
    share_column(t, p, band, near, (near.radius - near.rows) * side + column, moved_stride);
  }
}

// Padded copies of x and the gradient, and sums: by the pixel's later neighbours and by its earlier ones.
struct Padded {
  float* x;
  float* g;
  float* later;
  float* earlier;
  float* later_total;
  float* earlier_total;
  size_t stride;  // between channels
};

// Pairs (p, p + offset) for p in [begin, end): each weight is computed once and used both ways.
template <size_t Channels>
void add_pairs(const Padded& a, size_t offset, float space, float inverse_sigma, size_t begin, size_t end) {
  const float* UNBLEMISH_RESTRICT x = a.x;
  const float* UNBLEMISH_RESTRICT g = a.g;
  const float* UNBLEMISH_RESTRICT xq = a.x + offset;
  const float* UNBLEMISH_RESTRICT gq = a.g + offset;
  float* UNBLEMISH_RESTRICT later = a.later;
  float* UNBLEMISH_RESTRICT earlier = a.earlier + offset;
  float* UNBLEMISH_RESTRICT later_total = a.later_total;
  float* UNBLEMISH_RESTRICT earlier_total = a.earlier_total + offset;
  const size_t stride = a.stride;
#pragma omp simd
  for (size_t i = begin; i < end; ++i) {
    float distance = 0.0f;
    for (size_t c = 0; c < Channels; ++c) {
      const float d = xq[c * stride + i] - x[c * stride + i];
      distance += d * d;
    }
    const float w = sharing_weight(distance, space, inverse_sigma);
    later_total[i] += w;
    earlier_total[i] += w;
    for (size_t c = 0; c < Channels; ++c) {
      later[c * stride + i] += w * gq[c * stride + i];
      earlier[c * stride + i] += w * g[c * stride + i];
    }
  }
}

void add_pairs_any(const Padded& a, size_t channels, size_t offset, float space, float inverse_sigma, size_t begin,
                   size_t end) {
  alignas(64) float w[kStrip], ignored[kStrip] = {};
  const size_t count = end - begin;
  weigh(a.x + begin, a.x + begin + offset, channels, a.stride, a.stride, space, inverse_sigma, count, w, ignored);
  float* UNBLEMISH_RESTRICT later_total = a.later_total + begin;
  float* UNBLEMISH_RESTRICT earlier_total = a.earlier_total + begin + offset;
#pragma omp simd
  for (size_t i = 0; i < count; ++i) {
    later_total[i] += w[i];
    earlier_total[i] += w[i];
  }
  for (size_t c = 0; c < channels; ++c) {
    const float* g = a.g + c * a.stride + begin;
    float* UNBLEMISH_RESTRICT later = a.later + c * a.stride + begin;
    float* UNBLEMISH_RESTRICT earlier = a.earlier + c * a.stride + begin + offset;
#pragma omp simd
    for (size_t i = 0; i < count; ++i) {
      later[i] += w[i] * g[i + offset];
      earlier[i] += w[i] * g[i];
    }
  }
}

// Copy the band and the rows around it; columns of padding follow each row, and some lie before the first.
void pad(const float* image, const Plane& p, Band band, const Neighbours& near, float outside, float* padded,
         size_t stride) {
  for (size_t i = 0; i < stride; ++i) padded[i] = outside;
  float* UNBLEMISH_RESTRICT to = padded + near.columns;
  for (size_t line = 0; line < band.last - band.first + 2 * near.rows; ++line, to += p.width + near.columns) {
    const size_t y = band.first + line - near.rows;  // wraps round above the image
    if (y >= p.height) continue;
    const float* UNBLEMISH_RESTRICT row = image + y * p.width;
    for (size_t x = 0; x < p.width; ++x) to[x] = row[x];
  }
}

void visit_pairs(const Padded& a, const Plane& p, Band band, const Neighbours& near, const Falloff& f) {
  const size_t pitch = p.width + near.columns;
  const ptrdiff_t columns = static_cast<ptrdiff_t>(near.columns);
  const size_t last = near.columns + (near.rows + band.last - band.first) * pitch;
  for (size_t s = near.columns; s < last; s += kStrip) {
    const size_t end = s + strip(s, last);
    for (size_t dy = 0; dy <= near.rows; ++dy) {
      const size_t first = near.columns + (near.rows - dy) * pitch;  // row band.first - dy
      const size_t begin = first > s ? first : s;
      if (begin >= end) continue;
      for (ptrdiff_t dx = dy == 0 ? 1 : -columns; dx <= columns; ++dx) {
        const float space = space_of(static_cast<ptrdiff_t>(dy), dx, f);
        if (space < 0.0f) continue;
        const size_t offset = dy * pitch + static_cast<size_t>(dx);  // dx < 0 wraps round and back
        if (p.channels == 1)
          add_pairs<1>(a, offset, space, f.inverse_sigma_colour, begin, end);
        else if (p.channels == 3)
          add_pairs<3>(a, offset, space, f.inverse_sigma_colour, begin, end);
        else
          add_pairs_any(a, p.channels, offset, space, f.inverse_sigma_colour, begin, end);
      }
    }
  }
}

// A pixel's own weight is 1, or NaN where x is not finite.
void finish_row(const Padded& a, const Plane& p, size_t at, size_t to, float inverse_sigma, float* shared) {
  alignas(64) float own[kStrip], total[kStrip];
  for (size_t s = 0; s < p.width; s += kStrip) {
    const size_t count = strip(s, p.width), i0 = at + s;
    for (size_t i = 0; i < count; ++i) total[i] = a.later_total[i0 + i] + a.earlier_total[i0 + i];
    weigh(a.x + i0, a.x + i0, p.channels, a.stride, a.stride, 0.0f, inverse_sigma, count, own, total);
    for (size_t c = 0; c < p.channels; ++c) {
      const size_t k = c * a.stride + i0;
      float* UNBLEMISH_RESTRICT out = shared + c * p.size + to + s;
#pragma omp simd
      for (size_t i = 0; i < count; ++i)
        out[i] = (own[i] * a.g[k + i] + (a.later[k + i] + a.earlier[k + i])) / total[i];
    }
  }
}

void direct(const DirectTile& t, const Plane& p, Band band, const Neighbours& near, const Falloff& f) {
  const size_t pitch = p.width + near.columns, rows = band.last - band.first;
  const size_t stride = (rows + 2 * near.rows) * pitch + 2 * near.columns, image = p.channels * stride;
  float* room = t.room;
  const Padded a{room,
                 room + image,
                 room + 2 * image,
                 room + 3 * image,
                 room + 4 * image,
                 room + 4 * image + stride,
                 stride};
  for (size_t c = 0; c < p.channels; ++c) {
    pad(t.x + c * p.size, p, band, near, HUGE_VALF, a.x + c * stride, stride);
    pad(t.gradient + c * p.size, p, band, near, 0.0f, a.g + c * stride, stride);
  }
  for (size_t i = 0; i < 2 * image + 2 * stride; ++i) a.later[i] = 0.0f;
  visit_pairs(a, p, band, near, f);
  for (size_t y = band.first; y < band.last; ++y)
    finish_row(a, p, near.columns + (near.rows + y - band.first) * pitch, y * p.width, f.inverse_sigma_colour,
               t.shared);
}

}  // namespace

extern const SharingTiles sharing_tiles;
const SharingTiles sharing_tiles{weights, share, direct};

}  // namespace unblemish::cpu::UNBLEMISH_ISA
