#include "k_centre.hpp"

#include <algorithm>
#include <limits>

namespace unblemish::cpu {
namespace {

// Of squared distances, relative: four times their rounding, which is below (width / 32 + 10) 2^-24. Squares
// that underflow lose what is below the smallest normal number, each; see `slack_`.
constexpr float kSlack = 1e-4f;
constexpr float kSlackOfWidth = 1e-8f;
constexpr float kUnderflows = 16.0f;
constexpr std::size_t kPiece = 4096;     // members that one thread scans at once
constexpr std::size_t kPrunedBytes = 8;  // a member that is not compared

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

KCentre::KCentre(Engine& engine, const float* rows, std::size_t count, std::size_t width, std::size_t first)
    : engine_(engine),
      tiles_(k_centre_tiles_of(engine)),
      count_(count),
      pending_(static_cast<int>(first)),
      slack_(kSlack + kSlackOfWidth * static_cast<float>(width)),
      least_(kUnderflows * static_cast<float>(width) * std::numeric_limits<float>::min()),
      heads_(count * kHead),
      rows_{rows, heads_.data(), width} {
  for (std::size_t row = 0; row < count; ++row) std::copy_n(rows + row * width, kHead, heads_.data() + row * kHead);
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<Member> all(count);
  for (std::size_t row = 0; row < count; ++row) all[row] = {static_cast<int>(row), infinity};
  add_cluster(pending_, std::move(all));
  set_radius(0, infinity, pending_);
}

void KCentre::choose(std::int64_t* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    absorb(pending_);
    own_ = farthest_cluster();
    pending_ = farthest_[own_];
    ++centres_;
    out[i] = pending_;
  }
}

std::size_t KCentre::farthest_cluster() const {
  const float radius = tiles_.largest(radius_.data(), radius_.size());
  std::size_t best = radius_.size();
  for (std::size_t a = 0; a < radius_.size(); ++a)
    if (radius_[a] == radius && (best == radius_.size() || farthest_[a] < farthest_[best])) best = a;
  return best;
}

// Make z a centre: give it the members that are nearer to it than to theirs.
void KCentre::absorb(int z) {
  find_near(z);
  cut_pieces();
  scan_pieces(z);
  std::vector<Member> members;
  take_over(z, members);
  add_cluster(z, std::move(members));
}

// The clusters that z may take members of; the one that z itself is in always is one.
void KCentre::find_near(int z) {
  near_.clear();
  bool own = false;
  within_.resize(centre_.size());
  const std::size_t found = tiles_.within(blocks_.data(), limit_.data(), centre_.size(),
                                          rows_.heads + static_cast<std::size_t>(z) * kHead, within_.data());
  const float* row = rows_.rows + static_cast<std::size_t>(z) * rows_.width;
  for (std::size_t k = 0; k < found; ++k) {
    const std::size_t a = static_cast<std::size_t>(within_[k]);
    const float* centre = rows_.rows + static_cast<std::size_t>(centre_[a]) * rows_.width;
    const float distance = tiles_.distance(row, centre, rows_.width, limit_[a]);
    if (!(distance < limit_[a])) continue;
    near_.push_back({within_[k], distance * (0.25f * (1.0f - slack_)) - least_});
    own |= a == own_;
  }
  // All rows of z's cluster lie on its centre, or none has a distance yet.
  if (!own) near_.push_back({static_cast<int>(own_), -1.0f});
}

void KCentre::cut_pieces() {
  pieces_.clear();
  for (const Near& near : near_) {
    const std::size_t size = members_[static_cast<std::size_t>(near.cluster)].size();
    for (std::size_t first = 0; first < size; first += kPiece)
      pieces_.push_back({near.cluster, near.safe, first, std::min(kPiece, size - first), {}});
  }
}

void KCentre::scan_pieces(int z) {
  std::size_t bytes = 0;
  for (const Piece& piece : pieces_) bytes += piece.count * (kPrunedBytes + sizeof(float) * kHead);
  engine_.pool.for_each(pieces_.size(), bytes, [&](std::size_t number) {
    Piece& piece = pieces_[number];
    Member* members = members_[static_cast<std::size_t>(piece.cluster)].data() + piece.first;
    piece.scanned = tiles_.scan(members, piece.count, rows_, z, piece.safe);
  });
}

// Gather what the scans moved to the ends of the pieces, close the gaps, and note the farthest members.
void KCentre::take_over(int z, std::vector<Member>& taken) {
  for (std::size_t p = 0; p < pieces_.size();) {
    const std::size_t cluster = static_cast<std::size_t>(pieces_[p].cluster);
    std::vector<Member>& members = members_[cluster];
    std::size_t kept = 0;
    float radius = -1.0f;
    int farthest = -1;
    for (; p < pieces_.size() && static_cast<std::size_t>(pieces_[p].cluster) == cluster; ++p) {
      const Piece& piece = pieces_[p];
      for (std::size_t i = piece.scanned.kept; i < piece.count; ++i)
        if (members[piece.first + i].row != z) taken.push_back(members[piece.first + i]);
      if (kept != piece.first)
        std::copy_n(members.begin() + static_cast<std::ptrdiff_t>(piece.first), piece.scanned.kept,
                    members.begin() + static_cast<std::ptrdiff_t>(kept));
      kept += piece.scanned.kept;
      const Scanned& s = piece.scanned;
      if (s.farthest > radius || (s.farthest == radius && s.row < farthest)) {
        radius = s.farthest;
        farthest = s.row;
      }
    }
    members.resize(kept);
    if (kept < members.capacity() / 4) members.shrink_to_fit();
    set_radius(cluster, radius, farthest);
  }
}

void KCentre::add_cluster(int z, std::vector<Member>&& members) {
  const std::size_t number = centre_.size();
  if (number % kHead == 0) blocks_.resize(blocks_.size() + kHead * kHead);
  float* block = blocks_.data() + number / kHead * (kHead * kHead) + number % kHead;
  for (std::size_t i = 0; i < kHead; ++i) block[i * kHead] = rows_.heads[static_cast<std::size_t>(z) * kHead + i];
  float radius = -1.0f;
  int farthest = -1;
  for (const Member& one : members)
    if (one.nearest > radius || (one.nearest == radius && one.row < farthest)) {
      radius = one.nearest;
      farthest = one.row;
    }
  centre_.push_back(z);
  members_.push_back(std::move(members));
  members_.back().shrink_to_fit();
  radius_.push_back(-1.0f);
  farthest_.push_back(-1);
  limit_.push_back(-1.0f);
  set_radius(number, radius, farthest);
}

void KCentre::set_radius(std::size_t cluster, float radius, int row) {
  radius_[cluster] = radius;
  farthest_[cluster] = row;
  limit_[cluster] = radius < 0.0f ? -1.0f : 4.0f * radius * (1.0f + slack_) + least_;
}

}  // namespace unblemish::cpu
