// Compiled once per instruction set (UNBLEMISH_ISA); see tiles.cpp for what may be used here.
//
// Sums of squares only grow while terms are added, in floating point too: once every part is no less than
// what the row has, nothing changes, and the rest is left out.
#include "k_centre_tiles.hpp"

#include "lanes.hpp"

namespace unblemish::cpu::UNBLEMISH_ISA {
namespace {

using std::size_t;

constexpr size_t kRows = 4;   // compared with one panel at once
constexpr size_t kWide = 2;   // registers of a panel
constexpr size_t kPanel = kWide * kLanes;
constexpr size_t kDeep = 4;   // registers of a block: as many sums as hide the time of one
constexpr size_t kBlockRows = kDeep * kLanes;
constexpr size_t kLook = 16;  // numbers between two looks at the sums

size_t next_look(size_t c, size_t width) { return width - c < kLook ? width : c + kLook; }

void lower_rows(const float* const* rows, size_t width, const float* UNBLEMISH_RESTRICT panel, float** nearest) {
  Lanes sum[kRows][kWide] = {};
  for (size_t c = 0; c < width;) {
    for (const size_t end = next_look(c, width); c < end; ++c) {
      Lanes m[kWide];
      for (size_t w = 0; w < kWide; ++w) m[w] = load_lanes(panel + c * kPanel + w * kLanes);
#pragma GCC unroll 4
      for (size_t r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (size_t w = 0; w < kWide; ++w) {
          const Lanes d = m[w] - rows[r][c];
          sum[r][w] += d * d;
        }
    }
    bool open = false;
    for (size_t r = 0; r < kRows; ++r)
      for (size_t w = 0; w < kWide; ++w) open |= any_less(sum[r][w], *nearest[r]);
    if (!open) return;
  }
  for (size_t r = 0; r < kRows; ++r)
    for (size_t w = 0; w < kWide; ++w)
      for (size_t k = 0; k < kLanes; ++k)
        if (sum[r][w][k] < *nearest[r]) *nearest[r] = sum[r][w][k];
}

void lower(const float* const* rows, size_t count, size_t width, const float* panels, size_t count_panels,
           float* nearest) {
  for (size_t p = 0; p < count_panels; ++p, panels += width * kPanel)
    for (size_t first = 0; first < count; first += kRows) {
      const float* these[kRows];  // the last group repeats its last row
      float* lowest[kRows];
      for (size_t r = 0; r < kRows; ++r) {
        const size_t at = first + r < count ? first + r : count - 1;
        these[r] = rows[at];
        lowest[r] = nearest + at;
      }
      lower_rows(these, width, panels, lowest);
    }
}

float lower_block(const float* UNBLEMISH_RESTRICT rows, size_t width, const float* UNBLEMISH_RESTRICT centre,
                  float* nearest) {
  Lanes sum[kDeep] = {};
  bool open = true;
  for (size_t c = 0; c < width && open;) {
    for (const size_t end = next_look(c, width); c < end; ++c)
#pragma GCC unroll 4
      for (size_t w = 0; w < kDeep; ++w) {
        const Lanes d = load_lanes(rows + c * kBlockRows + w * kLanes) - centre[c];
        sum[w] += d * d;
      }
    open = false;
    for (size_t w = 0; w < kDeep; ++w) open |= any_below(sum[w], load_lanes(nearest + w * kLanes));
  }
  if (open)
    for (size_t w = 0; w < kDeep; ++w)
      store_lanes(nearest + w * kLanes, lesser(sum[w], load_lanes(nearest + w * kLanes)));
  float largest = -1.0f;
  for (size_t k = 0; k < kBlockRows; ++k) largest = nearest[k] > largest ? nearest[k] : largest;
  return largest;
}

}  // namespace

extern const KCentreTiles k_centre_tiles;
const KCentreTiles k_centre_tiles{kPanel, kBlockRows, lower, lower_block};

}  // namespace unblemish::cpu::UNBLEMISH_ISA
