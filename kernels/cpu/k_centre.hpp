// Greedy k-centre choice: each centre is the row farthest from all centres before it.
//
// Plainly, every new centre is compared with every row at once, and memory is read once for each. Here only a
// pool of the farthest rows follows every centre. What another row has is its distance to the nearest of
// the centres it was last compared with: it can only fall. So while the farthest of the pool is no nearer
// than what any other row has, it is the farthest of all. When it is nearer, rows with much are compared
// with all centres they missed, many at once, and the farthest become the new pool; most rows are left
// as they are. Nothing is estimated: the choice is that of the plain algorithm with the same distances, bit by
// bit, and of equally far rows the first is taken.
// Source: Gonzalez 1985; bounds kept until they matter after Minoux, 'Accelerated greedy algorithms', 1978.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "drivers.hpp"
#include "k_centre_tiles.hpp"

namespace unblemish::cpu {

class KCentre {
 public:
  // rows: (count, width), finite, kept by the caller. `first` becomes the first centre. pool: rows that follow
  // every centre, at most; the choice does not depend on it.
  KCentre(Engine& engine, const float* rows, std::size_t count, std::size_t width, std::size_t first,
          std::size_t pool);

  // The next `count` centres, as many as there are rows left at most.
  void choose(std::int64_t* out, std::size_t count);

  std::size_t remaining() const { return count_ - centres_; }

 private:
  // Where a row stands in the order of choice: the farthest first, of equal ones the lower row.
  struct Rank {
    float nearest;
    int row;
    bool before(const Rank& other) const {
      return nearest > other.nearest || (nearest == other.nearest && row < other.row);
    }
  };

  const float* row(std::size_t number) const { return rows_ + number * width_; }
  std::size_t panels() const { return (centres_ + tiles_.panel - 1) / tiles_.panel; }
  std::size_t farthest_slot() const;
  bool decided(std::size_t slot) const;
  void add_centre(int centre);
  void refill();
  float cut_for(std::size_t wanted);
  void catch_up(float cut);
  void sort_missed();
  void fill(float cut, std::vector<Rank>& ranks);
  void settle_pool();

  Engine& engine_;
  const KCentreTiles& tiles_;
  const float* rows_;
  std::size_t count_;
  std::size_t width_;
  std::size_t most_;  // rows of the pool
  std::size_t centres_ = 0;
  std::vector<float> panels_;           // centres, (panels, width, tiles_.panel); spare ones repeat the first
  std::vector<float> nearest_;          // squared, per row; -1: chosen
  std::vector<std::uint32_t> seen_;     // centres that a row was compared with
  std::vector<int> missed_, sorted_;    // rows to be compared
  std::vector<float> sample_;
  std::size_t wanted_;
  // The pool, in blocks of rows in rising order.
  Rank last_{0.0f, -1};                 // no row outside comes before it
  std::vector<float> pool_;             // (blocks, width, tiles_.block)
  std::vector<float> pool_nearest_;
  std::vector<int> pool_row_;           // -1: none
  std::vector<float> block_largest_;
  std::vector<std::uint32_t> block_seen_;
};

}  // namespace unblemish::cpu
