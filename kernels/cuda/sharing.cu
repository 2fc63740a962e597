// Gradients shared between neighbours; see include/unblemish/sharing.hpp.
//
// One thread per pixel; neighbouring threads read the same lines, which the caches serve. A weight is
// computed by each of the two pixels it belongs to: storing it would cost more than the exponential.
#include "common.cuh"
#include "unblemish/sharing.hpp"

namespace unblemish::cuda {

struct Grid {
  int channels;
  int height;
  int width;
  int radius;

  __device__ size_t plane() const { return static_cast<size_t>(height) * width; }
  __device__ int side() const { return 2 * radius + 1; }
};

struct Falloff {
  float inverse_sigma_space;
  float inverse_sigma_colour;
};

// Call visit(k, offset, dy, dx) for the neighbours of pixel `i` inside the image, in order.
template <class Visit>
__device__ void for_neighbours(const Grid& grid, size_t i, const Visit& visit) {
  const int y = static_cast<int>(i / grid.width), x = static_cast<int>(i % grid.width);
  for (int dy = -grid.radius; dy <= grid.radius; ++dy) {
    if (y + dy < 0 || y + dy >= grid.height) continue;
    for (int dx = -grid.radius; dx <= grid.radius; ++dx) {
      if (x + dx < 0 || x + dx >= grid.width) continue;
      const int k = (dy + grid.radius) * grid.side() + dx + grid.radius;
      visit(static_cast<size_t>(k), static_cast<long long>(dy) * grid.width + dx, dy, dx);
    }
  }
}

// Weight of a neighbour before it is normalised; 0 where the distance alone makes it negligible.
__device__ float weight_of(const float* x, long long offset, int dy, int dx, const Grid& grid, const Falloff& f) {
  const float space = static_cast<float>(dy * dy + dx * dx) * f.inverse_sigma_space;
  if (space > kLargestSpace) return 0.0f;
  float distance = 0.0f;
  for (int c = 0; c < grid.channels; ++c, x += grid.plane()) distance += (x[offset] - *x) * (x[offset] - *x);
  return sharing_weight(distance, space, f.inverse_sigma_colour);
}

// Channels > 0: sums stay in registers. Channels = 0: any number, weights computed for each again.
template <int Channels>
__device__ void direct(const float* gradient, const float* x, float* shared, size_t i, const Grid& grid,
                       const Falloff& f) {
  constexpr int kept = Channels > 0 ? Channels : 1;
  for (int c = 0; c < (Channels > 0 ? 1 : grid.channels); ++c) {
    const size_t at = c * grid.plane() + i;
    float sum[kept] = {};
    float total = 0.0f;
    for_neighbours(grid, i, [&](size_t, long long offset, int dy, int dx) {
      const float w = weight_of(x + i, offset, dy, dx, grid, f);
      total += w;
#pragma unroll
      for (int j = 0; j < kept; ++j) sum[j] += w * (gradient + at + j * grid.plane())[offset];
    });
#pragma unroll
    for (int j = 0; j < kept; ++j) shared[at + j * grid.plane()] = sum[j] / total;
  }
}

}  // namespace unblemish::cuda

// weights: halves, (batch, (2 radius + 1)^2, plane); those outside the image are 0.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_sharing_weights(const float* __restrict__ x, float inverse_sigma_space, float inverse_sigma_colour,
                              unsigned short* __restrict__ weights, int batch, int channels, int height, int width,
                              int radius) {
  using namespace unblemish::cuda;
  const Grid grid{channels, height, width, radius};
  const Falloff falloff{inverse_sigma_space, inverse_sigma_colour};
  const size_t plane = grid.plane(), table = plane * grid.side() * grid.side();
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y)
    for (size_t i = first(1); i < plane; i += stride(1)) {
      const float* pixel = x + b * channels * plane + i;
      unsigned short* out = weights + b * table + i;
      float total = 0.0f;
      for (size_t k = 0; k < table / plane; ++k) out[k * plane] = 0;
      for_neighbours(grid, i, [&](size_t, long long offset, int dy, int dx) {
        total += weight_of(pixel, offset, dy, dx, grid, falloff);
      });
      for_neighbours(grid, i, [&](size_t k, long long offset, int dy, int dx) {
        out[k * plane] = unblemish::half_of_float(weight_of(pixel, offset, dy, dx, grid, falloff) / total);
      });
    }
}

extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_share_gradient(const float* __restrict__ gradient, const unsigned short* __restrict__ weights,
                             float* __restrict__ shared, int batch, int channels, int height, int width,
                             int radius) {
  using namespace unblemish::cuda;
  const Grid grid{channels, height, width, radius};
  const size_t plane = grid.plane(), table = plane * grid.side() * grid.side();
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y)
    for (size_t i = first(1); i < plane; i += stride(1))
      for (int c = 0; c < channels; ++c) {
        const size_t at = (b * channels + c) * plane + i;
        const unsigned short* w = weights + b * table + i;
        float sum = 0.0f;
        for_neighbours(grid, i, [&](size_t k, long long offset, int, int) {
          sum += unblemish::float_of_half(w[k * plane]) * (gradient + at)[offset];
        });
        shared[at] = sum;
      }
}

extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_share_gradient_direct(const float* __restrict__ gradient, const float* __restrict__ x,
                                    float inverse_sigma_space, float inverse_sigma_colour,
                                    float* __restrict__ shared, int batch, int channels, int height, int width,
                                    int radius) {
  using namespace unblemish::cuda;
  const Grid grid{channels, height, width, radius};
  const Falloff falloff{inverse_sigma_space, inverse_sigma_colour};
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const size_t image = b * channels * grid.plane();
    for (size_t i = first(1); i < grid.plane(); i += stride(1)) {
      if (channels == 1)
        direct<1>(gradient + image, x + image, shared + image, i, grid, falloff);
      else if (channels == 3)
        direct<3>(gradient + image, x + image, shared + image, i, grid, falloff);
      else
        direct<0>(gradient + image, x + image, shared + image, i, grid, falloff);
    }
  }
}
