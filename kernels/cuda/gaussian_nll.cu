// Gaussian negative log-likelihood with its gradients; see include/unblemish/gaussian_nll.hpp.
#include "common.cuh"
#include "unblemish/gaussian_nll.hpp"

namespace unblemish::cuda {

struct Likelihood {
  const float* x;
  const float* g;
  const float* log_scale;  // one row shared by the channels
  float scale;
  float* cotangent;
  float* log_scale_cotangent;  // one row
};

template <int Width>
__device__ double likelihood(const Likelihood a, int channels, size_t plane) {
  double sum = 0.0;
  for (size_t i = first(Width); i < plane; i += stride(Width)) {
    const Lanes<Width> s = load<Width>(a.log_scale + i);
    Lanes<Width> inverse, back;
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      inverse.v[k] = inverse_variance(s.v[k]);
      back.v[k] = static_cast<float>(channels);
      sum += static_cast<float>(channels) * s.v[k];
    }
    for (int c = 0; c < channels; ++c) {
      const Lanes<Width> x = load<Width>(a.x + c * plane + i), g = load<Width>(a.g + c * plane + i);
      Lanes<Width> cotangent;
#pragma unroll
      for (int k = 0; k < Width; ++k) {
        const float r = g.v[k] - x.v[k], slope = r * inverse.v[k];
        cotangent.v[k] = a.scale * slope;
        back.v[k] -= slope * r;
        sum += 0.5f * (slope * r);
      }
      store<Width>(a.cotangent + c * plane + i, cotangent);
    }
#pragma unroll
    for (int k = 0; k < Width; ++k) back.v[k] *= a.scale;
    store<Width>(a.log_scale_cotangent + i, back);
  }
  return sum;
}

}  // namespace unblemish::cuda

// log_scale: (batch, 1, plane). Per element: channels = 1, plane = C H W. unblemish_finish_sum ends the objective.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_gaussian_nll(const float* __restrict__ x, const float* __restrict__ g,
                           const float* __restrict__ log_scale, const float* __restrict__ scale,
                           float* __restrict__ cotangent, float* __restrict__ log_scale_cotangent,
                           double* __restrict__ partial, int batch, int channels, size_t plane) {
  using namespace unblemish::cuda;
  const bool wide = plane % 4 == 0 && aligned(x, g, log_scale, cotangent, log_scale_cotangent);
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const size_t image = b * channels * plane, row = b * plane;
    const Likelihood item{x + image, g + image, log_scale + row, scale[b], cotangent + image,
                          log_scale_cotangent + row};
    write_partial(partial, b, wide ? likelihood<4>(item, channels, plane) : likelihood<1>(item, channels, plane));
  }
}

namespace unblemish::cuda {

template <int Width>
__device__ void half_variance(const float* log_scale, float* out, size_t begin, size_t count) {
  for (size_t i = begin + first(Width); i < count; i += stride(Width)) {
    Lanes<Width> s = load<Width>(log_scale + i);
#pragma unroll
    for (int k = 0; k < Width; ++k) s.v[k] = inverse_variance(-s.v[k]);
    store<Width>(out + i, s);
  }
}

}  // namespace unblemish::cuda

// out = exp(2 s), the variance of a decoder whose log standard deviation is s; infinite from s = 43 on.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_half_variance(const float* __restrict__ log_scale, float* __restrict__ out, size_t count) {
  using namespace unblemish::cuda;
  const size_t wide = aligned(log_scale, out) ? count / 4 * 4 : 0;
  half_variance<4>(log_scale, out, 0, wide);
  half_variance<1>(log_scale, out, wide, count);
}
