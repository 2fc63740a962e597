#include "k_centre.hpp"

#include <algorithm>
#include <functional>
#include <limits>

namespace unblemish::cpu {
namespace {

constexpr std::size_t kEnough = 4;      // of a pool: this part of it is worth being one
constexpr std::size_t kSample = 16384;  // rows that a quantile is taken from
constexpr std::size_t kChunk = 64;      // rows that a thread compares with one panel after the other

const KCentreTiles& k_centre_tiles_of(const Engine& engine) {
#if defined(UNBLEMISH_HAS_AVX2) && defined(UNBLEMISH_HAS_AVX512)
  if (&engine.tiles == &avx512::tiles) return avx512::k_centre_tiles;
  if (&engine.tiles == &avx2::tiles) return avx2::k_centre_tiles;
#else
  static_cast<void>(engine);
#endif
  return baseline::k_centre_tiles;
}

}  // namespace

KCentre::KCentre(Engine& engine, const float* rows, std::size_t count, std::size_t width, std::size_t first,
                 std::size_t pool)
    : engine_(engine),
      tiles_(k_centre_tiles_of(engine)),
      rows_(rows),
      count_(count),
      width_(width),
      most_(pool),
      nearest_(count, std::numeric_limits<float>::infinity()),
      seen_(count, 0),
      wanted_(2 * pool) {
  nearest_[first] = -1.0f;
  add_centre(static_cast<int>(first));
}

void KCentre::choose(std::int64_t* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    std::size_t slot = farthest_slot();
    if (!decided(slot)) {
      refill();
      slot = farthest_slot();
    }
    const int chosen = pool_row_[slot];
    out[i] = chosen;
    pool_nearest_[slot] = -1.0f;
    add_centre(chosen);
  }
}

// The first of the farthest in the pool.
std::size_t KCentre::farthest_slot() const {
  if (block_largest_.empty()) return pool_row_.size();
  const auto block = std::max_element(block_largest_.begin(), block_largest_.end());
  const auto first = pool_nearest_.begin() + (block - block_largest_.begin()) * static_cast<std::ptrdiff_t>(tiles_.block);
  return static_cast<std::size_t>(std::find(first, pool_nearest_.end(), *block) - pool_nearest_.begin());
}

// Whether no row outside the pool can come before this one.
bool KCentre::decided(std::size_t slot) const {
  return slot < pool_row_.size() && pool_nearest_[slot] >= 0.0f && !last_.before({pool_nearest_[slot], pool_row_[slot]});
}

// Blocks in which nothing can be chosen any more are left behind.
void KCentre::add_centre(int centre) {
  const float* z = row(static_cast<std::size_t>(centre));
  const std::size_t lane = centres_ % tiles_.panel;
  if (lane == 0) panels_.resize(panels_.size() + tiles_.panel * width_);
  float* panel = panels_.data() + (centres_ - lane) * width_;
  for (std::size_t c = 0; c < width_; ++c)
    std::fill_n(panel + c * tiles_.panel + lane, lane == 0 ? tiles_.panel : 1, z[c]);
  ++centres_;
  for (std::size_t b = 0; b < block_largest_.size(); ++b) {
    if (block_largest_[b] < last_.nearest) continue;
    block_largest_[b] = tiles_.lower_block(pool_.data() + b * tiles_.block * width_, width_, z,
                                           pool_nearest_.data() + b * tiles_.block);
    block_seen_[b] = static_cast<std::uint32_t>(centres_);
  }
}

// Find the farthest rows, and make them the pool.
void KCentre::refill() {
  settle_pool();
  std::vector<Rank> ranks;
  for (bool first = true;; first = false) {
    const float cut = cut_for(wanted_);
    catch_up(cut);
    ranks.clear();
    for (std::size_t r = 0; r < count_; ++r)
      if (nearest_[r] >= cut) ranks.push_back({nearest_[r], static_cast<int>(r)});
    if (ranks.size() * kEnough >= most_ || cut == 0.0f) {
      if (first && ranks.size() > most_) wanted_ = std::max(most_, wanted_ / 2);
      fill(cut, ranks);
      return;
    }
    wanted_ = std::min(count_, 4 * wanted_);
  }
}

// Rows leave the pool with what they have.
void KCentre::settle_pool() {
  for (std::size_t slot = 0; slot < pool_row_.size(); ++slot) {
    if (pool_row_[slot] < 0) continue;
    nearest_[static_cast<std::size_t>(pool_row_[slot])] = pool_nearest_[slot];
    seen_[static_cast<std::size_t>(pool_row_[slot])] = block_seen_[slot / tiles_.block];
  }
}

// About as many rows as `wanted` have no less; 0: all that are left.
float KCentre::cut_for(std::size_t wanted) {
  if (wanted >= count_) return 0.0f;
  const std::size_t step = (count_ + kSample - 1) / kSample;
  sample_.clear();
  for (std::size_t r = 0; r < count_; r += step) sample_.push_back(nearest_[r]);
  const auto rank = sample_.begin() + static_cast<std::ptrdiff_t>(wanted / step);
  if (rank >= sample_.end()) return 0.0f;
  std::nth_element(sample_.begin(), rank, sample_.end(), std::greater<float>());
  return std::max(*rank, 0.0f);
}

// Compare every row that has `cut` or more with the centres it missed.
void KCentre::catch_up(float cut) {
  missed_.clear();
  for (std::size_t r = 0; r < count_; ++r)
    if (nearest_[r] >= cut && seen_[r] < centres_) missed_.push_back(static_cast<int>(r));
  sort_missed();
  const std::size_t chunks = (sorted_.size() + kChunk - 1) / kChunk;
  const std::size_t bytes = sorted_.size() * width_ * sizeof(float);
  engine_.pool.for_each(chunks, bytes, [&](std::size_t chunk) {
    const std::size_t first = chunk * kChunk, count = std::min(kChunk, sorted_.size() - first);
    const int* numbers = sorted_.data() + first;
    const std::size_t panel = seen_[static_cast<std::size_t>(numbers[0])] / tiles_.panel;  // the least of all
    const float* these[kChunk] = {};
    float nearest[kChunk];
    for (std::size_t i = 0; i < count; ++i) {
      these[i] = row(static_cast<std::size_t>(numbers[i]));
      nearest[i] = nearest_[static_cast<std::size_t>(numbers[i])];
    }
    tiles_.lower(these, count, width_, panels_.data() + panel * tiles_.panel * width_, panels() - panel, nearest);
    for (std::size_t i = 0; i < count; ++i) nearest_[static_cast<std::size_t>(numbers[i])] = nearest[i];
  });
  for (const int r : sorted_) seen_[static_cast<std::size_t>(r)] = static_cast<std::uint32_t>(centres_);
}

// Those that missed most first, by counting, so that the rows of a chunk missed the same panels.
void KCentre::sort_missed() {
  std::vector<std::size_t> place(panels() + 2, 0);
  const auto panel = [&](int r) { return seen_[static_cast<std::size_t>(r)] / tiles_.panel; };
  for (const int r : missed_) ++place[panel(r) + 1];
  for (std::size_t p = 1; p < place.size(); ++p) place[p] += place[p - 1];
  sorted_.resize(missed_.size());
  for (const int r : missed_) sorted_[place[panel(r)]++] = r;
}

// The pool of the first of `ranks`, which are all rows that have `cut` or more.
void KCentre::fill(float cut, std::vector<Rank>& ranks) {
  last_ = {cut, std::numeric_limits<int>::max()};
  if (ranks.size() > most_) {
    const auto end = ranks.begin() + static_cast<std::ptrdiff_t>(most_ - 1);
    std::nth_element(ranks.begin(), end, ranks.end(), [](const Rank& a, const Rank& b) { return a.before(b); });
    last_ = *end;
    ranks.resize(most_);
    std::sort(ranks.begin(), ranks.end(), [](const Rank& a, const Rank& b) { return a.row < b.row; });
  }
  const std::size_t size = tiles_.block, blocks = (ranks.size() + size - 1) / size;
  pool_.resize(blocks * size * width_);
  pool_nearest_.assign(blocks * size, -1.0f);
  pool_row_.assign(blocks * size, -1);
  block_largest_.assign(blocks, -1.0f);
  block_seen_.assign(blocks, static_cast<std::uint32_t>(centres_));
  for (std::size_t slot = 0; slot < ranks.size(); ++slot) {
    pool_nearest_[slot] = ranks[slot].nearest;
    pool_row_[slot] = ranks[slot].row;
    block_largest_[slot / size] = std::max(block_largest_[slot / size], ranks[slot].nearest);
    const float* from = row(static_cast<std::size_t>(ranks[slot].row));
    float* to = pool_.data() + slot / size * size * width_ + slot % size;
    for (std::size_t c = 0; c < width_; ++c) to[c * size] = from[c];
  }
}

}  // namespace unblemish::cpu
