// Compiled once per instruction set (UNBLEMISH_ISA); see tiles.cpp for what may be used here.
//
// Sums of squares only grow while terms are added, in floating point too: a part that is no less than the
// limit decides. So every comparison below comes out as with the whole sum.
#include "k_centre_tiles.hpp"

#include "lanes.hpp"

namespace unblemish::cpu::UNBLEMISH_ISA {
namespace {

using std::size_t;

constexpr size_t kStep = 2 * kHead;  // numbers between two looks at the limit
constexpr size_t kSoon = 12;         // members ahead whose heads are asked for

template <size_t Count>
float squares(const float* a, const float* b) {
  Lanes sum = {};
  for (size_t i = 0; i < Count; i += kLanes) {
    const Lanes d = load_lanes(a + i) - load_lanes(b + i);
    sum += d * d;
  }
  return sum_lanes(sum);
}

// Go on from `sum`, the squares of the first kHead numbers.
float rest_of_distance(const float* a, const float* b, size_t width, float limit, float sum) {
  size_t i = kHead;
  for (; i + kStep <= width && sum < limit; i += kStep) sum += squares<kStep>(a + i, b + i);
  for (; i < width && sum < limit; i += kHead) sum += squares<kHead>(a + i, b + i);
  return sum;
}

float distance(const float* a, const float* b, size_t width, float limit) {
  return rest_of_distance(a, b, width, limit, squares<kHead>(a, b));
}

size_t within(const float* blocks, const float* limits, size_t count, const float* z, int* out) {
  size_t found = 0;
  for (size_t first = 0; first < count; first += kHead, blocks += kHead * kHead) {
    const size_t end = count - first < kHead ? count - first : kHead;
    float sums[kHead];
    for (size_t k = 0; k < kHead; k += kLanes) {
      Lanes sum = {};
      for (size_t i = 0; i < kHead; ++i) {
        const Lanes d = load_lanes(blocks + i * kHead + k) - z[i];
        sum += d * d;
      }
      store_lanes(sums + k, sum);
    }
    unsigned near = 0;
    for (size_t k = 0; k < end; ++k) near |= static_cast<unsigned>(sums[k] < limits[first + k]) << k;
    for (size_t k = 0; near != 0; ++k, near >>= 1)
      if (near & 1u) out[found++] = static_cast<int>(first + k);
  }
  return found;
}

Scanned scan(Member* members, size_t count, const KCentreRows& r, int z, float safe) {
  const float* z_head = r.heads + static_cast<size_t>(z) * kHead;
  const float* z_row = r.rows + static_cast<size_t>(z) * r.width;
  size_t end = count;
  Scanned best{0, -1.0f, -1};
  for (size_t i = 0; i < end;) {
    if (i + kSoon < end) prefetch(r.heads + static_cast<size_t>(members[i + kSoon].row) * kHead);
    const Member one = members[i];
    const size_t row = static_cast<size_t>(one.row);
    float found = 0.0f;
    bool moves = one.row == z;
    if (!moves && one.nearest > safe) {
      found = squares<kHead>(r.heads + row * kHead, z_head);
      if (found < one.nearest) found = rest_of_distance(r.rows + row * r.width, z_row, r.width, one.nearest, found);
      moves = found < one.nearest;
    }
    if (moves) {
      members[i] = members[--end];
      members[end] = {one.row, found};
      continue;
    }
    if (one.nearest > best.farthest || (one.nearest == best.farthest && one.row < best.row)) {
      best.farthest = one.nearest;
      best.row = one.row;
    }
    ++i;
  }
  best.kept = end;
  return best;
}

float largest(const float* values, size_t count) {
  float best = -1.0f;
#pragma omp simd reduction(max : best)
  for (size_t i = 0; i < count; ++i) best = values[i] > best ? values[i] : best;
  return best;
}

}  // namespace

extern const KCentreTiles k_centre_tiles;
const KCentreTiles k_centre_tiles{within, distance, scan, largest};

}  // namespace unblemish::cpu::UNBLEMISH_ISA
