// Structural dissimilarity with its map and both gradients; see include/unblemish/dssim.hpp.
//
// Two kernels: the slopes by the windowed means, kept in `slopes` (items x channels x 4 x plane, by (x + g) / 2
// itself, so that tiles may anchor as they like); then the gradients from them. A block takes tiles of kSide^2
// pixels of one item in turn; windows reach kMostReach pixels at most.
#include "common.cuh"
#include "unblemish/dssim.hpp"

namespace unblemish::cuda {

constexpr int kSide = 16;        // kSide^2 == kThreads
constexpr int kMostReach = 15;   // a window of 31
constexpr int kWide = kSide + 2 * kMostReach;

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

// The windowed mean at this thread's pixel of what `read` gives by index into the plane. Every thread of the
// block calls it.
template <class Read>
__device__ float blur(const Place& p, const Window& w, int height, int width, const Read& read) {
  __shared__ float pixels[kWide * kWide];
  __shared__ float along[kWide * kSide];
  const int wide = kSide + 2 * w.radius;
  __syncthreads();  // the previous tile may still be read
  for (int i = static_cast<int>(threadIdx.x); i < wide * wide; i += kThreads) {
    const size_t y = static_cast<size_t>(mirrored(p.top + i / wide - w.radius, height));
    const size_t x = static_cast<size_t>(mirrored(p.left + i % wide - w.radius, width));
    pixels[i] = read(y * width + x);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < wide * kSide; i += kThreads) {
    const float* from = pixels + i / kSide * wide + i % kSide;
    float sum = 0.0f;
    for (int k = 0; k <= 2 * w.radius; ++k) sum += w.weights[k] * from[k];
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

__device__ DssimMeans means(const Place& p, const Window& w, int height, int width, const Pair& pair) {
  const float d = blur(p, w, height, width, [&](size_t i) { return pair.at(i).d; });
  const float u = blur(p, w, height, width, [&](size_t i) { return pair.at(i).u; });
  const float dd = blur(p, w, height, width, [&](size_t i) { return pair.at(i).dd; });
  const float uu = blur(p, w, height, width, [&](size_t i) { return pair.at(i).uu; });
  return {d, u, dd, uu};
}

}  // namespace unblemish::cuda

// weights: 2 radius + 1 floats made on the host by unblemish::gaussian_window; radius <= 15. slopes: nullptr
// where no gradient is asked for. map: (batch, plane), or nullptr. unblemish_finish_sum ends the objective.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_dssim(const float* __restrict__ x, const float* __restrict__ g, const float* __restrict__ weights,
                    int radius, unblemish::DssimConstants constants, float* __restrict__ slopes,
                    float* __restrict__ map, double* __restrict__ partial, int batch, int channels, int height,
                    int width) {
  using namespace unblemish::cuda;
  using namespace unblemish;
  const size_t plane = static_cast<size_t>(height) * width;
  const Window window{weights, radius};
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
        const DssimMeans m = means(p, window, height, width, {x + image, g + image, anchor});
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

// direct, cotangent: nullptr where not asked for.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_dssim_gradient(const float* __restrict__ x, const float* __restrict__ g,
                             const float* __restrict__ weights, int radius, const float* __restrict__ slopes,
                             const float* __restrict__ scale, float* __restrict__ direct,
                             float* __restrict__ cotangent, int batch, int channels, int height, int width) {
  using namespace unblemish::cuda;
  using namespace unblemish;
  const size_t plane = static_cast<size_t>(height) * width;
  const Window window{weights, radius};
  for (size_t row = blockIdx.y; row < static_cast<size_t>(batch) * channels; row += gridDim.y) {
    const float factor = scale[row / channels] / static_cast<float>(channels);
    for (size_t tile = blockIdx.x; tile < tiles_of(height, width); tile += gridDim.x) {
      const Place p = place_of(tile, width);
      float back[4];
      for (int q = 0; q < 4; ++q) {
        const float* from = slopes + (4 * row + q) * plane;
        back[q] = blur(p, window, height, width, [&](size_t i) { return from[i]; });
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
