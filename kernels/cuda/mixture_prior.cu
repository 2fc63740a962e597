// Distance to the nearest component of a mixture, value and gradient; see include/unblemish/mixture_prior.hpp.
#include "common.cuh"
#include "unblemish/mixture_prior.hpp"

namespace unblemish::cuda {

struct Mixture {
  const float* means;
  const float* precisions;
  int components;
};

__device__ __forceinline__ float mixture_distance(const float* n, size_t stride, const float* mean,
                                                  const float* precision, int channels) {
  float distance = 0.0f;
  for (int c = 0; c < channels; ++c)
    distance += mixture_slope(n, stride, mean, precision, channels, c) * (n[c * stride] - mean[c]);
  return distance;
}

// One pixel, whose channels are `stride` apart in n and `plane` in the gradient; returns the distance to the nearest
// component.
__device__ __forceinline__ float prior_of_pixel(const float* n, size_t stride, float* gradient, float weight,
                                                const Mixture& m, int channels, size_t plane) {
  float best = 0.0f;
  int nearest = 0;
  for (int q = 0; q < m.components; ++q) {
    const float distance =
        mixture_distance(n, stride, m.means + q * channels, m.precisions + q * channels * channels, channels);
    if (q > 0 && !is_nearer(distance, best)) continue;
    best = distance;
    nearest = q;
  }
  const float* mean = m.means + nearest * channels;
  const float* precision = m.precisions + nearest * channels * channels;
  for (int c = 0; c < channels; ++c)
    gradient[c * plane] += 2.0f * weight * mixture_slope(n, stride, mean, precision, channels, c);
  return best;
}

// Channels > 0: the pixel stays in registers. Channels = 0: any number, n is read for each element of each precision.
template <int Channels>
__device__ double prior(const float* n, const unsigned char* free, float* gradient, float weight, const Mixture& m,
                        int channels, size_t plane) {
  double sum = 0.0;
  for (size_t i = first(1); i < plane; i += stride(1)) {
    if (free[i] == 0) continue;
    if constexpr (Channels > 0) {
      float pixel[Channels];
#pragma unroll
      for (int c = 0; c < Channels; ++c) pixel[c] = n[c * plane + i];
      sum += prior_of_pixel(pixel, 1, gradient + i, weight, m, Channels, plane);
    } else {
      sum += prior_of_pixel(n + i, plane, gradient + i, weight, m, channels, plane);
    }
  }
  return sum;
}

}  // namespace unblemish::cuda

// free: (batch, plane). gradient is added to; unblemish_finish_added_sum ends the value.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_mixture_prior(const float* __restrict__ n, const float* __restrict__ means,
                            const float* __restrict__ precisions, int components, const float* __restrict__ weight,
                            const unsigned char* __restrict__ free, float* __restrict__ gradient,
                            double* __restrict__ partial, int batch, int channels, size_t plane) {
  using namespace unblemish::cuda;
  const Mixture mixture{means, precisions, components};
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const size_t image = b * channels * plane;
    write_partial(partial, b, with_channels(channels, [&](auto known) {
                    return prior<decltype(known)::value>(n + image, free + b * plane, gradient + image, weight[b],
                                                         mixture, channels, plane);
                  }));
  }
}
