// The k smallest of a stream of numbered values, in a heap whose root is the worst one kept.
#pragma once

#include <cstddef>

#include "unblemish/hd.hpp"

namespace unblemish {
inline namespace UNBLEMISH_ISA {

// k slots in two arrays.
struct Heap {
  float* value;
  int* index;
  std::size_t count;
};

// ||m||^2 - 2 q m: as the squared distance, but for ||q||^2, which all rows m have in common.
UNBLEMISH_HD float ranking(float norm, float product) { return norm - 2.0f * product; }

// Whether (a, i) comes after (b, j): of equal values the lower number comes first.
UNBLEMISH_HD bool comes_after(float a, int i, float b, int j) { return a > b || (a == b && i > j); }

// Put (value, index) in the hole at `slot` of the first `count` slots, or below it.
UNBLEMISH_HD void sift_down(const Heap& heap, std::size_t slot, std::size_t count, float value, int index) {
  for (std::size_t child = 2 * slot + 1; child < count; child = 2 * slot + 1) {
    if (child + 1 < count &&
        comes_after(heap.value[child + 1], heap.index[child + 1], heap.value[child], heap.index[child]))
      ++child;
    if (!comes_after(heap.value[child], heap.index[child], value, index)) break;
    heap.value[slot] = heap.value[child];
    heap.index[slot] = heap.index[child];
    slot = child;
  }
  heap.value[slot] = value;
  heap.index[slot] = index;
}

// Infinitely bad rows 0 to k - 1, the worst, k - 1, at the root. Rows must then come in rising order.
UNBLEMISH_HD void empty_heap(const Heap& heap, float infinity) {
  for (std::size_t k = 0; k < heap.count; ++k) {
    heap.value[k] = infinity;
    heap.index[k] = static_cast<int>(heap.count - 1 - k);
  }
}

// NaN is not taken in.
UNBLEMISH_HD void offer(const Heap& heap, float value, int index) {
  if (value < heap.value[0]) sift_down(heap, 0, heap.count, value, index);
}

// Order after the values have changed: the smallest first.
UNBLEMISH_HD void sort_heap(const Heap& heap) {
  for (std::size_t slot = heap.count / 2; slot-- > 0;)
    sift_down(heap, slot, heap.count, heap.value[slot], heap.index[slot]);
  for (std::size_t last = heap.count; last-- > 1;) {
    const float value = heap.value[last];
    const int index = heap.index[last];
    heap.value[last] = heap.value[0];
    heap.index[last] = heap.index[0];
    sift_down(heap, 0, last, value, index);
  }
}

}  // namespace UNBLEMISH_ISA
}  // namespace unblemish
