// Distances of features over whole arrays: blocks of cells or queries, shared by the threads. A cell is
// computed by one thread alone, so that no result depends on their number.
#pragma once

#include "drivers.hpp"

namespace unblemish::cpu {

struct CellArrays {
  const float* f;      // (items, cells, channels)
  const float* mean;   // (places, channels)
  const int* cells;    // (items, cells)
  float* scores;       // (items, cells)
  float* cotangent;    // (items, cells, channels), or nullptr
  std::size_t items;
  std::size_t length;  // cells of an item
  std::size_t channels;
  std::size_t places;
};

// whitening: (places, channels (channels + 1) / 2).
void mahalanobis(Engine&, const CellArrays&, const float* whitening);

// basis: (places, channels, rank). inverse_variance: (places).
void mahalanobis_low_rank(Engine&, const CellArrays&, const float* basis, const float* inverse_variance,
                          std::size_t rank);

struct NearestArrays {
  const float* f;         // (cells, channels)
  const float* bank;      // (rows, channels)
  const int* candidates;  // (cells, k)
  float* scores;
  float* cotangent;  // or nullptr
  int* chosen;
  std::size_t cells;
  std::size_t channels;
  std::size_t k;
};

void nearest_candidate(Engine&, const NearestArrays&);

struct BankArrays {
  const float* queries;  // (count, channels)
  const float* bank;     // (rows, channels)
  const float* norms;    // (rows), or nullptr
  int* index;            // (count, k)
  float* distances;      // (count, k)
  std::size_t count;
  std::size_t rows;
  std::size_t channels;
  std::size_t k;
};

void top_candidates(Engine&, const BankArrays&);

}  // namespace unblemish::cpu
