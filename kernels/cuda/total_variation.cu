// Total variation, value and gradient; see include/unblemish/total_variation.hpp.
#include "common.cuh"
#include "unblemish/total_variation.hpp"

namespace unblemish::cuda {

// Where a pixel's neighbours lie; 0 where one is missing.
struct Offsets {
  size_t above, left, below, right;
};

// Squared norms over the channels of the differences to the four neighbours.
__device__ CrossNorms squared_norms(const float* n, const Offsets& to, int channels, size_t plane) {
  CrossNorms square{0.0f, 0.0f, 0.0f, 0.0f};
  for (int c = 0; c < channels; ++c, n += plane) {
    const float above = *n - *(n - to.above), left = *n - *(n - to.left);
    const float below = n[to.below] - *n, right = n[to.right] - *n;
    square.above += above * above;
    square.left += left * left;
    square.below += below * below;
    square.right += right * right;
  }
  return square;
}

// One pixel; returns the norms below and to the right.
__device__ double variation(const float* n, float* gradient, float weight, const Offsets& to, int channels,
                            size_t plane) {
  const CrossNorms square = squared_norms(n, to, channels, plane);
  const CrossNorms inverse{inverse_norm(square.above), inverse_norm(square.left), inverse_norm(square.below),
                           inverse_norm(square.right)};
  for (int c = 0; c < channels; ++c, n += plane, gradient += plane) {
    const Cross cross{*n, *(n - to.above), *(n - to.left), n[to.below], n[to.right]};
    *gradient += weight * variation_slope(cross, inverse);
  }
  return static_cast<double>(sqrtf(square.below)) + static_cast<double>(sqrtf(square.right));
}

}  // namespace unblemish::cuda

// gradient is added to; unblemish_finish_added_sum adds weight times the partial sums to the value.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_total_variation(const float* __restrict__ n, const float* __restrict__ weight,
                              float* __restrict__ gradient, double* __restrict__ partial, int batch, int channels,
                              int height, int width) {
  using namespace unblemish::cuda;
  const size_t plane = static_cast<size_t>(height) * width;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const size_t image = b * channels * plane;
    double sum = 0.0;
    for (size_t i = first(1); i < plane; i += stride(1)) {
      const size_t y = i / width, x = i % width, row = width;
      const Offsets to{y > 0 ? row : 0, x > 0 ? size_t{1} : 0, y + 1 < static_cast<size_t>(height) ? row : 0,
                       x + 1 < row ? size_t{1} : 0};
      sum += variation(n + image + i, gradient + image + i, weight[b], to, channels, plane);
    }
    write_partial(partial, b, sum);
  }
}
