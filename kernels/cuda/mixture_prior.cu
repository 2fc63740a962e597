// Distance to the nearest component of a mixture, value and gradient; see include/unblemish/mixture_prior.hpp.
#include "common.cuh"
#include "unblemish/mixture_prior.hpp"

namespace unblemish::cuda {

struct Mixture {
  const float* means;
  const float* precisions;
  int components;
};

__device__ float mixture_distance(const float* n, size_t plane, const float* mean, const float* precision,
                                  int channels) {
  float distance = 0.0f;
  for (int c = 0; c < channels; ++c)
    distance += mixture_slope(n, plane, mean, precision, channels, c) * (n[c * plane] - mean[c]);
  return distance;
}

// One pixel; returns the distance to the nearest component.
__device__ float prior(const float* n, float* gradient, float weight, const Mixture& m, int channels, size_t plane) {
  float best = 0.0f;
  int nearest = 0;
  for (int q = 0; q < m.components; ++q) {
    const float distance =
        mixture_distance(n, plane, m.means + q * channels, m.precisions + q * channels * channels, channels);
    if (q > 0 && !is_nearer(distance, best)) continue;
    best = distance;
    nearest = q;
  }
  const float* mean = m.means + nearest * channels;
  const float* precision = m.precisions + nearest * channels * channels;
  for (int c = 0; c < channels; ++c)
    gradient[c * plane] += 2.0f * weight * mixture_slope(n, plane, mean, precision, channels, c);
  return best;
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
    double sum = 0.0;
    for (size_t i = first(1); i < plane; i += stride(1))
      if (free[b * plane + i] != 0)
        sum += prior(n + image + i, gradient + image + i, weight[b], mixture, channels, plane);
    write_partial(partial, b, sum);
  }
}
