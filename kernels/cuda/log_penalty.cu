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
__device__ __forceinline__ Lanes<Width> difference(const Penalty& a, size_t i) {
  const Lanes<Width> x = load<Width>(a.x + i);
  Lanes<Width> d = load<Width>(a.n + i);
#pragma unroll
  for (int k = 0; k < Width; ++k) d.v[k] -= x.v[k];
  return d;
}

// Channels > 0: differences stay in registers. Channels = 0: any number, x and n are read a second time.
template <int Channels, int Width>
__device__ double penalty(const Penalty a, int channels, size_t plane) {
  const int count = Channels > 0 ? Channels : channels;
  double sum = 0.0;
  for (size_t i = first(Width); i < plane; i += stride(Width)) {
    Lanes<Width> d[Channels > 0 ? Channels : 1];
    Lanes<Width> slope{};
#pragma unroll
    for (int c = 0; c < count; ++c) {
      Lanes<Width>& kept = d[Channels > 0 ? c : 0];
      kept = difference<Width>(a, c * plane + i);
#pragma unroll
      for (int k = 0; k < Width; ++k) slope.v[k] += kept.v[k] * kept.v[k];
    }
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      const float square = slope.v[k];
      if (a.free[i + k] != 0) sum += log_penalty_value(square, a.epsilon);
      slope.v[k] = a.weight * log_penalty_slope(square, a.epsilon);
    }
#pragma unroll
    for (int c = 0; c < count; ++c) {
      if constexpr (Channels == 0) d[0] = difference<Width>(a, c * plane + i);
      Lanes<Width> gradient = load<Width>(a.gradient + c * plane + i);
#pragma unroll
      for (int k = 0; k < Width; ++k)
        if (a.free[i + k] != 0) gradient.v[k] += slope.v[k] * d[Channels > 0 ? c : 0].v[k];
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
    write_partial(partial, b, with_channels(channels, [&](auto known) {
                    constexpr int count = decltype(known)::value;
                    return wide ? penalty<count, 4>(item, channels, plane) : penalty<count, 1>(item, channels, plane);
                  }));
  }
}
