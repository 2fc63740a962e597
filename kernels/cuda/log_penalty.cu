// The LOG penalty, value and gradient; see include/unblemish/log_penalty.hpp.
#include "common.cuh"
#include "unblemish/log_penalty.hpp"

namespace unblemish::cuda {

struct Penalty {
  const float* x;
  const float* n;
  const unsigned char* free;
  float weight;
  float epsilon;
  float* gradient;
};

template <int Width>
__device__ double penalty(const Penalty a, int channels, size_t plane) {
  double sum = 0.0;
  for (size_t i = first(Width); i < plane; i += stride(Width)) {
    Lanes<Width> slope{};
    for (int c = 0; c < channels; ++c) {
      const Lanes<Width> x = load<Width>(a.x + c * plane + i);
      const Lanes<Width> n = load<Width>(a.n + c * plane + i);
#pragma unroll
      for (int k = 0; k < Width; ++k) slope.v[k] += (n.v[k] - x.v[k]) * (n.v[k] - x.v[k]);
    }
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      const float square = slope.v[k];
      if (a.free[i + k] != 0) sum += log_penalty_value(square, a.epsilon);
      slope.v[k] = a.weight * log_penalty_slope(square, a.epsilon);
    }
    for (int c = 0; c < channels; ++c) {
      const Lanes<Width> x = load<Width>(a.x + c * plane + i);
      const Lanes<Width> n = load<Width>(a.n + c * plane + i);
      Lanes<Width> gradient = load<Width>(a.gradient + c * plane + i);
#pragma unroll
      for (int k = 0; k < Width; ++k)
        if (a.free[i + k] != 0) gradient.v[k] += slope.v[k] * (n.v[k] - x.v[k]);
      store<Width>(a.gradient + c * plane + i, gradient);
    }
  }
  return sum;
}

}  // namespace unblemish::cuda

// free: (batch, plane). gradient is added to; unblemish_finish_added_sum ends the value.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_log_penalty(const float* __restrict__ x, const float* __restrict__ n,
                          const float* __restrict__ weight, const unsigned char* __restrict__ free, float epsilon,
                          float* __restrict__ gradient, double* __restrict__ partial, int batch, int channels,
                          size_t plane) {
  using namespace unblemish::cuda;
  const bool wide = plane % 4 == 0 && aligned(x, n, gradient);
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const size_t image = b * channels * plane;
    const Penalty item{x + image, n + image, free + b * plane, weight[b], epsilon, gradient + image};
    write_partial(partial, b, wide ? penalty<4>(item, channels, plane) : penalty<1>(item, channels, plane));
  }
}
