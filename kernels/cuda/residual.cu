// Weighted l2 and l1 residuals; see include/unblemish/residual.hpp.
#include "common.cuh"
#include "unblemish/residual.hpp"

namespace unblemish::cuda {

struct Residual {
  const float* x;
  const float* g;
  const float* weight;  // one row shared by the channels; nullptr where every weight is 1
  float scale;
  float* cotangent;
};

struct L2 {
  static __device__ double value(float r, float w) { return l2_value(r, w); }
  static __device__ float cotangent(float r, float w, float scale) { return l2_cotangent(r, w, 2.0f * scale); }
};

struct L1 {
  static __device__ double value(float r, float w) { return l1_value(r, w); }
  static __device__ float cotangent(float r, float w, float scale) { return l1_cotangent(r, w, scale); }
};

template <class Loss, int Width>
__device__ double residual(const Residual a, int channels, size_t plane) {
  double sum = 0.0;
  for (size_t i = first(Width); i < plane; i += stride(Width)) {
    Lanes<Width> weight;
#pragma unroll
    for (int k = 0; k < Width; ++k) weight.v[k] = 1.0f;
    if (a.weight != nullptr) weight = load<Width>(a.weight + i);
    for (int c = 0; c < channels; ++c) {
      const Lanes<Width> x = load<Width>(a.x + c * plane + i);
      const Lanes<Width> g = load<Width>(a.g + c * plane + i);
      Lanes<Width> cotangent;
#pragma unroll
      for (int k = 0; k < Width; ++k) {
        const float r = g.v[k] - x.v[k];
        sum += Loss::value(r, weight.v[k]);
        cotangent.v[k] = Loss::cotangent(r, weight.v[k], a.scale);
      }
      store<Width>(a.cotangent + c * plane + i, cotangent);
    }
  }
  return sum;
}

template <class Loss>
__device__ void residual_of_batch(const float* x, const float* g, const float* weight, const float* scale,
                                  float* cotangent, double* partial, int batch, int channels, size_t plane) {
  const bool wide = plane % 4 == 0 && aligned(x, g, weight, cotangent);
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const size_t image = b * channels * plane;
    const Residual item{x + image, g + image, weight == nullptr ? nullptr : weight + b * plane, scale[b],
                        cotangent + image};
    write_partial(partial, b,
                  wide ? residual<Loss, 4>(item, channels, plane) : residual<Loss, 1>(item, channels, plane));
  }
}

}  // namespace unblemish::cuda

// weight: (batch, 1, plane) or nullptr. Per element, or without weights: channels = 1, plane = C H W.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_residual_l2(const float* __restrict__ x, const float* __restrict__ g, const float* __restrict__ weight,
                          const float* __restrict__ scale, float* __restrict__ cotangent,
                          double* __restrict__ partial, int batch, int channels, size_t plane) {
  using namespace unblemish::cuda;
  residual_of_batch<L2>(x, g, weight, scale, cotangent, partial, batch, channels, plane);
}

extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_residual_l1(const float* __restrict__ x, const float* __restrict__ g, const float* __restrict__ weight,
                          const float* __restrict__ scale, float* __restrict__ cotangent,
                          double* __restrict__ partial, int batch, int channels, size_t plane) {
  using namespace unblemish::cuda;
  residual_of_batch<L1>(x, g, weight, scale, cotangent, partial, batch, channels, plane);
}
