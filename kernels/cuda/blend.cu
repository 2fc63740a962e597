// Holes filled by turns: the shape of a reconstruction, at the level of what surrounds the hole.
//
// x - y is carried into the hole as the surface of a plate under tension through its values at the rim, see
// runtime/membrane.py: conjugate gradients on the slope of
//     sum over pixels in and beside the hole of (L u)^2 + sum over pairs at the hole of (u_i - u_j)^2.
// A plane is one block's, which so ends when its own hole has settled, without a word to the host.
#include <math.h>

#include "common.cuh"
#include "unblemish/adam.hpp"
#include "unblemish/norms.hpp"

namespace unblemish::cuda {

constexpr int kMostTurns = 100;
constexpr float kEnough = 5e-4f;  // of the known range: slope of the energy at a pixel

struct Pixel {
  int y, x;
  size_t at;
};

// A hole in a plane, and the rows and columns that it sees: two more on every side.
struct Hole {
  const float* free;  // 0 where a pixel is known
  int height, width;
  int top, left, rows, columns;

  __device__ int size() const { return rows * columns; }
  __device__ Pixel pixel(int k) const {
    const int y = top + k / columns, x = left + k % columns;
    return {y, x, static_cast<size_t>(y) * width + x};
  }
  __device__ bool has(size_t at) const { return free[at] != 0.0f; }

  // Whether `test` holds at a pixel or at one of its four neighbours.
  template <class Test>
  __device__ bool beside(const Pixel& p, const Test& test) const {
    return test(p) || (p.y > 0 && test(Pixel{p.y - 1, p.x, p.at - width})) ||
           (p.y + 1 < height && test(Pixel{p.y + 1, p.x, p.at + width})) ||
           (p.x > 0 && test(Pixel{p.y, p.x - 1, p.at - 1})) ||
           (p.x + 1 < width && test(Pixel{p.y, p.x + 1, p.at + 1}));
  }
  __device__ bool near(const Pixel& p) const {
    return beside(p, [&](const Pixel& q) { return has(q.at); });
  }
  __device__ bool seen(const Pixel& p) const {
    return beside(p, [&](const Pixel& q) { return near(q); });
  }

  // Sum of the differences to the four neighbours, those beyond the edge left out; positive definite.
  __device__ float laplacian(const float* u, const Pixel& p) const {
    const float here = u[p.at];
    float sum = 0.0f;
    if (p.y > 0) sum += here - u[p.at - width];
    if (p.y + 1 < height) sum += here - u[p.at + width];
    if (p.x > 0) sum += here - u[p.at - 1];
    if (p.x + 1 < width) sum += here - u[p.at + 1];
    return sum;
  }
};

// As reduce_block, for every thread of the block.
template <class Op = Add>
__device__ double of_block(double value) {
  __shared__ double shared;
  const double total = reduce_block<Op>(value);
  if (threadIdx.x == 0) shared = total;
  __syncthreads();
  return shared;
}

__device__ Hole hole_in(const float* free, int height, int width) {
  double first_row = 0.0, last_row = 0.0, first_column = 0.0, last_column = 0.0;
  for (int i = static_cast<int>(threadIdx.x); i < height * width; i += kThreads) {
    if (free[i] == 0.0f) continue;
    const int y = i / width, x = i % width;
    first_row = fmax(first_row, static_cast<double>(height - y));
    last_row = fmax(last_row, y + 1.0);
    first_column = fmax(first_column, static_cast<double>(width - x));
    last_column = fmax(last_column, x + 1.0);
  }
  const int top = height - static_cast<int>(of_block<Max>(first_row));
  const int bottom = static_cast<int>(of_block<Max>(last_row));
  const int left = width - static_cast<int>(of_block<Max>(first_column));
  const int right = static_cast<int>(of_block<Max>(last_column));
  if (bottom == 0) return {free, height, width, 0, 0, 0, 0};
  const int y = top > 2 ? top - 2 : 0, x = left > 2 ? left - 2 : 0;
  return {free, height, width, y, x, (bottom + 2 < height ? bottom + 2 : height) - y,
          (right + 2 < width ? right + 2 : width) - x};
}

// Memory of a plane: the surface, its residual, the direction, what the slope is the Laplacian of, the slope.
struct Plate {
  float* u;
  float* residual;
  float* direction;
  float* bent;
  float* slope;
};

__device__ double roughness_of(const Hole& hole, const float* u) {
  double sum = 0.0;
  for (int k = static_cast<int>(threadIdx.x); k < hole.size(); k += kThreads) {
    const Pixel p = hole.pixel(k);
    if (hole.near(p)) sum += square(hole.laplacian(u, p));
    const bool here = hole.has(p.at);
    if (p.y + 1 < hole.height && (here || hole.has(p.at + hole.width))) sum += square(u[p.at + hole.width] - u[p.at]);
    if (p.x + 1 < hole.width && (here || hole.has(p.at + 1))) sum += square(u[p.at + 1] - u[p.at]);
  }
  return sum;
}

// Half the slope of the energy, at the pixels of the hole. Both loops end at a barrier.
__device__ void slope_of(const Hole& hole, const float* u, float* bent, float* slope) {
  for (int k = static_cast<int>(threadIdx.x); k < hole.size(); k += kThreads) {
    const Pixel p = hole.pixel(k);
    if (hole.near(p)) bent[p.at] = hole.laplacian(u, p) + u[p.at];
  }
  __syncthreads();
  for (int k = static_cast<int>(threadIdx.x); k < hole.size(); k += kThreads) {
    const Pixel p = hole.pixel(k);
    if (hole.has(p.at)) slope[p.at] = hole.laplacian(bent, p);
  }
  __syncthreads();
}

// Visit the pixels of the hole that are this thread's.
template <class Work>
__device__ __forceinline__ void inside(const Hole& hole, const Work& work) {
  for (int k = static_cast<int>(threadIdx.x); k < hole.size(); k += kThreads) {
    const Pixel p = hole.pixel(k);
    if (hole.has(p.at)) work(p.at);
  }
}

// Range of the known pixels that the hole sees, 0 included.
__device__ double range_of(const Hole& hole, const float* u) {
  double highest = 0.0, lowest = 0.0;
  for (int k = static_cast<int>(threadIdx.x); k < hole.size(); k += kThreads) {
    const Pixel p = hole.pixel(k);
    if (hole.has(p.at) || !hole.seen(p)) continue;
    highest = fmax(highest, static_cast<double>(u[p.at]));
    lowest = fmax(lowest, -static_cast<double>(u[p.at]));
  }
  return of_block<Max>(highest) + of_block<Max>(lowest);
}

__device__ void relax(const Hole& hole, const Plate& a) {
  const double enough = kEnough * fmax(range_of(hole, a.u), 1e-6);
  slope_of(hole, a.u, a.bent, a.slope);
  for (int k = static_cast<int>(threadIdx.x); k < hole.size(); k += kThreads) {
    const size_t at = hole.pixel(k).at;
    a.residual[at] = a.direction[at] = hole.has(at) ? -a.slope[at] : 0.0f;
  }
  double sum = 0.0, largest = 0.0;
  inside(hole, [&](size_t at) {
    sum += square(a.residual[at]);
    largest = fmax(largest, static_cast<double>(fabsf(a.residual[at])));
  });
  double size = of_block(sum), peak = of_block<Max>(largest);
  for (int turn = 0; turn < kMostTurns && peak > enough; ++turn) {
    slope_of(hole, a.direction, a.bent, a.slope);
    double along = 0.0;
    inside(hole, [&](size_t at) { along += static_cast<double>(a.direction[at]) * a.slope[at]; });
    const float step = static_cast<float>(size / fmax(of_block(along), 1e-30));
    sum = largest = 0.0;
    inside(hole, [&](size_t at) {
      a.u[at] += step * a.direction[at];
      a.residual[at] -= step * a.slope[at];
      sum += square(a.residual[at]);
      largest = fmax(largest, static_cast<double>(fabsf(a.residual[at])));
    });
    const double next = of_block(sum);
    peak = of_block<Max>(largest);
    const float turned = static_cast<float>(next / fmax(size, 1e-30));
    inside(hole, [&](size_t at) { a.direction[at] = a.residual[at] + turned * a.direction[at]; });
    size = next;
    __syncthreads();
  }
}

}  // namespace unblemish::cuda

// x <- y + (x - y carried into the hole), kept between lower and upper; y: `made`, as x. free: (batch, plane). Items
// that have `ended` stay as they are. plates: memory of 5 floats for each of x. roughness, largest: of x - y before,
// and of the change, a number for every plane; unblemish_finish_norms ends both. gridDim = (channels, batch). Two
// blocks on a multiprocessor, of few in all, leave registers enough to spill none.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 2)
    unblemish_blend(float* __restrict__ x, const float* __restrict__ made, const float* __restrict__ free,
                    const int* __restrict__ ended, float* plates, double* __restrict__ roughness,
                    double* __restrict__ largest, float lower, float upper, int height, int width) {
  using namespace unblemish::cuda;
  if (ended[blockIdx.y] != 0) return;
  const size_t plane = static_cast<size_t>(height) * width, number = blockIdx.y * gridDim.x + blockIdx.x;
  float* image = x + number * plane;
  const float* y = made + number * plane;
  float* room = plates + 5 * number * plane;
  const Plate plate{room, room + plane, room + 2 * plane, room + 3 * plane, room + 4 * plane};
  const Hole hole = hole_in(free + blockIdx.y * plane, height, width);
  double missing = 0.0, change = 0.0;
  for (int k = static_cast<int>(threadIdx.x); k < hole.size(); k += kThreads) {
    const size_t at = hole.pixel(k).at;
    plate.u[at] = image[at] - y[at];
    missing += hole.has(at) ? 1.0 : 0.0;
  }
  const bool known = of_block(missing) < static_cast<double>(plane);
  const double rough = of_block(roughness_of(hole, plate.u));
  if (known) relax(hole, plate);
  inside(hole, [&](size_t at) {
    const float level = known ? plate.u[at] : 0.0f;  // nothing to go by: the reconstruction itself
    const float place = unblemish::clamp_to_box(y[at] + level, lower, upper);
    change = fmax(change, static_cast<double>(fabsf(place - image[at])));
    image[at] = place;
  });
  const double moved_most = of_block<Max>(change);
  if (threadIdx.x != 0) return;
  roughness[number] = rough;
  largest[number] = moved_most;
}
