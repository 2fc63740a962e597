// Greedy k-centre choice: each centre is the row farthest from all centres before it.
//
// Plainly, every new centre z is compared with every row. Here rows belong to the cluster of their nearest
// centre, and by the triangle inequality a cluster whose centre a has d(z, a) >= 2 max d(p, a) keeps all
// its rows p, and a row with d(z, a) >= 2 d(p, a) stays. What remains is compared number by number until
// the sum exceeds what the row has. Rounding is held off by a slack, so the choice is that of the plain
// algorithm with the same distances, bit by bit; of equally far rows the first is taken.
// Source: Gonzalez 1985; pruning after Elkan, 'Using the triangle inequality to accelerate k-means', 2003.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "drivers.hpp"
#include "k_centre_tiles.hpp"

namespace unblemish::cpu {

class KCentre {
 public:
  // rows: (count, width), kept by the caller; width is a multiple of kHead. They are finite, and four times
  // a squared distance must not overflow. `first` becomes the first centre.
  KCentre(Engine& engine, const float* rows, std::size_t count, std::size_t width, std::size_t first);

  // The next `count` centres, as many as there are rows left at most.
  void choose(std::int64_t* out, std::size_t count);

  std::size_t remaining() const { return count_ - centres_; }

 private:
  struct Near {
    int cluster;
    float safe;  // members with no more than this stay
  };
  struct Piece {  // part of a cluster's members
    int cluster;
    float safe;
    std::size_t first;
    std::size_t count;
    Scanned scanned;
  };

  void absorb(int z);
  void find_near(int z);
  void cut_pieces();
  void scan_pieces(int z);
  void take_over(int z, std::vector<Member>& members);
  void add_cluster(int z, std::vector<Member>&& members);
  void set_radius(std::size_t cluster, float radius, int row);
  std::size_t farthest_cluster() const;

  Engine& engine_;
  const KCentreTiles& tiles_;
  std::size_t count_;
  std::size_t centres_ = 1;
  int pending_;           // chosen, not yet absorbed
  std::size_t own_ = 0;   // the cluster it is in
  float slack_;           // of squared distances, relative
  float least_;           // of squared distances, absolute
  std::vector<float> heads_;
  KCentreRows rows_;
  // Per cluster. The first holds all rows, infinitely far, until the first centre is absorbed.
  std::vector<std::vector<Member>> members_;
  std::vector<int> centre_;
  std::vector<float> radius_;  // squared, -1 where empty
  std::vector<int> farthest_;
  std::vector<float> limit_;   // squared distance of z from which on nothing changes
  std::vector<float> blocks_;  // heads of the centres, transposed
  // Of one step.
  std::vector<int> within_;
  std::vector<Near> near_;
  std::vector<Piece> pieces_;
};

}  // namespace unblemish::cpu
