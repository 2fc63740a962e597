// How rows are cut into blocks, and their sums taken in block order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "pool.hpp"

namespace unblemish::cpu {

inline constexpr std::size_t kBlock = 8192;  // elements of a row: the unit of work and of summation

// Where rows are cut: block k covers [start, start + count) of row k / per_row.
struct Cut {
  std::size_t length;
  std::size_t per_row;

  explicit Cut(std::size_t row_length) : length(row_length), per_row((row_length + kBlock - 1) / kBlock) {}
  std::size_t row(std::size_t block) const { return block / per_row; }
  std::size_t start(std::size_t block) const { return block % per_row * kBlock; }
  std::size_t count(std::size_t block) const { return std::min(kBlock, length - start(block)); }
};

// Room for partial sums that grows to the largest job of a thread and is kept: no allocation in the loop.
template <class T>
T* workspace(std::size_t count) {
  thread_local std::vector<T> room;
  if (room.size() < count) room.resize(count);
  return room.data();
}

inline double sum_in_order(const double* partial, std::size_t count) {
  double sum = 0.0;
  for (std::size_t i = 0; i < count; ++i) sum += partial[i];
  return sum;
}

// Run tile(block) -> double over all rows, and reduce per row times `scale`.
template <class Tile>
void reduce_rows(Pool& pool, std::size_t rows, const Cut& cut, std::size_t bytes, const float* scale, double* out,
                 const Tile& tile) {
  double* partial = workspace<double>(rows * cut.per_row);
  pool.for_each(rows * cut.per_row, bytes, [&](std::size_t block) { partial[block] = tile(block); });
  for (std::size_t row = 0; row < rows; ++row)
    out[row] = sum_in_order(partial + row * cut.per_row, cut.per_row) * (scale ? scale[row] : 1.0);
}

}  // namespace unblemish::cpu
