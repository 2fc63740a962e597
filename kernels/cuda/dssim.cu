// Structural dissimilarity with its map and both gradients; see include/unblemish/dssim.hpp.
//
// Two kernels: the slopes by the windowed means, kept in `slopes` (items x channels x 4 x plane, by (x + g) / 2
// itself, so that tiles may anchor as they like); then the gradients from them. A block takes tiles of kSide^2
// pixels of one item in turn. Windows that reach kMostReach pixels at most find their tile in shared memory; the
// _wide kernels, for windows up to 511, read it from the caches.
#include "common.cuh"
#include "unblemish/dssim.hpp"

namespace unblemish::cuda {

constexpr int kSide = 16;        // kSide^2 == kThreads
constexpr int kMostReach = 15;   // a window of 31
constexpr int kWide = kSide + 2 * kMostReach;
constexpr int kWidest = kSide + 2 * 255;

struct Window {
  const float* weights;
  int radius;
};

// The tile that a thread is at, and its pixel in it.
struct Place {
  int left, top, column, row;
  __device__ int x() const { return left + column; }
  __device__ int y() const { return top + row; }
};

__device__ __forceinline__ Place place_of(size_t tile, int width) {
  const size_t across = (static_cast<size_t>(width) + kSide - 1) / kSide;
  return {static_cast<int>(tile % across) * kSide, static_cast<int>(tile / across) * kSide,
          static_cast<int>(threadIdx.x) % kSide, static_cast<int>(threadIdx.x) / kSide};
}

__device__ __forceinline__ size_t tiles_of(int height, int width) {
  return (static_cast<size_t>(height) + kSide - 1) / kSide * ((static_cast<size_t>(width) + kSide - 1) / kSide);
}

// Shared memory by functions of their own: one piece for all instances of `blur`.
template <bool Wide>
__device__ __forceinline__ float* pixels_of_tile() {
  __shared__ float pixels[Wide ? 1 : kWide * kWide];
  return pixels;
}

template <bool Wide>
__device__ __forceinline__ float* sums_along() {
  __shared__ float along[(Wide ? kWidest : kWide) * kSide];
  return along;
}

// Where pixel (row, column) of the tile and its surroundings lies in the plane.
__device__ __forceinline__ size_t index_of(const Place& p, const Window& w, int row, int column, int height,
                                           int width) {
  const size_t y = static_cast<size_t>(mirrored(p.top + row - w.radius, height));
  return y * width + static_cast<size_t>(mirrored(p.left + column - w.radius, width));
}

// The windowed mean at this thread's pixel of what `read` gives by index into the plane. Every thread of the
// block calls it.
template <bool Wide, class Read>
__device__ float blur(const Place& p, const Window& w, int height, int width, const Read& read) {
  float* pixels = pixels_of_tile<Wide>();
  float* along = sums_along<Wide>();
  const int wide = kSide + 2 * w.radius;
  const auto at = [&](int row, int column) { return read(index_of(p, w, row, column, height, width)); };
  __syncthreads();  // the previous tile may still be read
  if constexpr (!Wide) {
    for (int i = static_cast<int>(threadIdx.x); i < wide * wide; i += kThreads) pixels[i] = at(i / wide, i % wide);
    __syncthreads();
  }
  for (int i = static_cast<int>(threadIdx.x); i < wide * kSide; i += kThreads) {
    float sum = 0.0f;
    for (int k = 0; k <= 2 * w.radius; ++k)
      sum += w.weights[k] * (Wide ? at(i / kSide, i % kSide + k) : pixels[i / kSide * wide + i % kSide + k]);
    along[i] = sum;
  }
  __syncthreads();
  float sum = 0.0f;
  for (int k = 0; k <= 2 * w.radius; ++k) sum += w.weights[k] * along[(p.row + k) * kSide + p.column];
  return sum;
}

struct Pair {
  const float* x;
  const float* g;
  float anchor;
  __device__ DssimMeans at(size_t i) const { return dssim_products(x[i], g[i], anchor); }
};

// In shared memory as 8 and 16 bytes, which half and quarter warps read without conflicts.
struct alignas(8) Level {
  float d, u;
};

struct alignas(16) Sums {
  float d, u, dd, uu;

  __device__ void add(float weight, float of_d, float of_u, float of_dd, float of_uu) {
    d += weight * of_d;
    u += weight * of_u;
    dd += weight * of_dd;
    uu += weight * of_uu;
  }
};

// The four windowed means at once: x and g are read once for all of them.
__device__ DssimMeans means_by_tile(const Place& p, const Window& w, int height, int width, const Pair& pair) {
  __shared__ Level levels[kWide * kWide];
  __shared__ Sums along[kWide * kSide];
  const int wide = kSide + 2 * w.radius;
  __syncthreads();  // the previous tile may still be read
  for (int i = static_cast<int>(threadIdx.x); i < wide * wide; i += kThreads) {
    const DssimMeans here = pair.at(index_of(p, w, i / wide, i % wide, height, width));
    levels[i] = {here.d, here.u};
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < wide * kSide; i += kThreads) {
    Sums sum{0.0f, 0.0f, 0.0f, 0.0f};
    for (int k = 0; k <= 2 * w.radius; ++k) {
      const Level v = levels[i / kSide * wide + i % kSide + k];
      sum.add(w.weights[k], v.d, v.u, v.d * v.d, v.u * v.u);
    }
    along[i] = sum;
  }
  __syncthreads();
  Sums sum{0.0f, 0.0f, 0.0f, 0.0f};
  for (int k = 0; k <= 2 * w.radius; ++k) {
    const Sums v = along[(p.row + k) * kSide + p.column];
    sum.add(w.weights[k], v.d, v.u, v.dd, v.uu);
  }
  return {sum.d, sum.u, sum.dd, sum.uu};
}

template <bool Wide>
__device__ DssimMeans means(const Place& p, const Window& w, int height, int width, const Pair& pair) {
  if constexpr (!Wide) {
    return means_by_tile(p, w, height, width, pair);
  } else {  // no room for four sums along rows so long
    const float d = blur<true>(p, w, height, width, [&](size_t i) { return pair.at(i).d; });
    const float u = blur<true>(p, w, height, width, [&](size_t i) { return pair.at(i).u; });
    const float dd = blur<true>(p, w, height, width, [&](size_t i) { return pair.at(i).dd; });
    const float uu = blur<true>(p, w, height, width, [&](size_t i) { return pair.at(i).uu; });
    return {d, u, dd, uu};
  }
}

// What both kernels work on.
struct Images {
  const float* x;
  const float* g;
  int batch, channels, height, width;
};

template <bool Wide>
__device__ void dissimilarity(const Images& a, const Window& window, const DssimConstants& constants, float* slopes,
                              float* map, double* partial) {
  const auto [x, g, batch, channels, height, width] = a;
  const size_t plane = static_cast<size_t>(height) * width;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    double sum = 0.0;
    for (size_t tile = blockIdx.x; tile < tiles_of(height, width); tile += gridDim.x) {
      const Place p = place_of(tile, width);
      const bool inside = p.x() < width && p.y() < height;
      const size_t at = static_cast<size_t>(p.y()) * width + p.x();
      const size_t corner = static_cast<size_t>(p.top) * width + p.left;
      float value = 0.0f;
      for (int c = 0; c < channels; ++c) {
        const size_t image = (b * channels + c) * plane;
        const float anchor = dssim_anchor(x[image + corner], g[image + corner], constants.range);
        const DssimMeans m = means<Wide>(p, window, height, width, {x + image, g + image, anchor});
        const DssimTerm term = dssim_term(m, anchor, constants);
        value += term.value;
        if (!inside || slopes == nullptr) continue;
        float* out = slopes + 4 * image + at;
        out[0] = term.d;
        out[plane] = term.u - 2.0f * anchor * term.uu;
        out[2 * plane] = term.dd;
        out[3 * plane] = term.uu;
      }
      if (!inside) continue;
      value /= static_cast<float>(channels);
      sum += value;
      if (map != nullptr) map[b * plane + at] = value;
    }
    write_partial(partial, b, sum);
  }
}

template <bool Wide>
__device__ void gradients(const Images& a, const Window& window, const float* slopes, const float* scale,
                          float* direct, float* cotangent) {
  const auto [x, g, batch, channels, height, width] = a;
  const size_t plane = static_cast<size_t>(height) * width;
  for (size_t row = blockIdx.y; row < static_cast<size_t>(batch) * channels; row += gridDim.y) {
    const float factor = scale[row / channels] / static_cast<float>(channels);
    for (size_t tile = blockIdx.x; tile < tiles_of(height, width); tile += gridDim.x) {
      const Place p = place_of(tile, width);
      float back[4];
      for (int q = 0; q < 4; ++q) {
        const float* from = slopes + (4 * row + q) * plane;
        back[q] = blur<Wide>(p, window, height, width, [&](size_t i) { return from[i]; });
      }
      if (p.x() >= width || p.y() >= height) continue;
      const size_t at = row * plane + static_cast<size_t>(p.y()) * width + p.x();
      const DssimGradient found =
          dssim_gradient({back[0], back[1], back[2], back[3]}, dssim_products(x[at], g[at], 0.0f), factor);
      if (direct != nullptr) direct[at] = found.x;
      if (cotangent != nullptr) cotangent[at] = found.g;
    }
  }
}

}  // namespace unblemish::cuda

// weights: 2 radius + 1 floats made on the host by unblemish::gaussian_window; radius <= kMostReach, of the
// _wide ones <= 255. slopes: nullptr where no gradient is asked for. map: (batch, plane), or nullptr.
// unblemish_finish_sum ends the objective. Four blocks on a multiprocessor leave registers enough to spill none.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_dssim(const float* __restrict__ x, const float* __restrict__ g, const float* __restrict__ weights,
                    int radius, unblemish::DssimConstants constants, float* __restrict__ slopes,
                    float* __restrict__ map, double* __restrict__ partial, int batch, int channels, int height,
                    int width) {
  using namespace unblemish::cuda;
  dissimilarity<false>({x, g, batch, channels, height, width}, {weights, radius}, constants, slopes, map, partial);
}

extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_dssim_wide(const float* __restrict__ x, const float* __restrict__ g, const float* __restrict__ weights,
                         int radius, unblemish::DssimConstants constants, float* __restrict__ slopes,
                         float* __restrict__ map, double* __restrict__ partial, int batch, int channels, int height,
                         int width) {
  using namespace unblemish::cuda;
  dissimilarity<true>({x, g, batch, channels, height, width}, {weights, radius}, constants, slopes, map, partial);
}

// direct, cotangent: nullptr where not asked for.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_dssim_gradient(const float* __restrict__ x, const float* __restrict__ g,
                             const float* __restrict__ weights, int radius, const float* __restrict__ slopes,
                             const float* __restrict__ scale, float* __restrict__ direct,
                             float* __restrict__ cotangent, int batch, int channels, int height, int width) {
  using namespace unblemish::cuda;
  gradients<false>({x, g, batch, channels, height, width}, {weights, radius}, slopes, scale, direct, cotangent);
}

extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_dssim_gradient_wide(const float* __restrict__ x, const float* __restrict__ g,
                             const float* __restrict__ weights, int radius, const float* __restrict__ slopes,
                             const float* __restrict__ scale, float* __restrict__ direct,
                             float* __restrict__ cotangent, int batch, int channels, int height, int width) {
  using namespace unblemish::cuda;
  gradients<true>({x, g, batch, channels, height, width}, {weights, radius}, slopes, scale, direct, cotangent);
}
