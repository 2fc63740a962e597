// RGI objective and derivatives with a free mask; see include/unblemish/rgi_gradient.hpp.
#include "common.cuh"
#include "unblemish/rgi_gradient.hpp"

namespace unblemish::cuda {

struct Gradient {
  const float* x;
  const float* g;
  const float* mask;
  float lam;
  float scale;
  float* cotangent;
  float* mask_gradient;
};

template <int Width>
__device__ double gradient(const Gradient a, int channels, size_t plane) {
  const float twice_scale = 2.0f * a.scale;
  double sum = 0.0;
  for (size_t i = first(Width); i < plane; i += stride(Width)) {
    const Lanes<Width> mask = load<Width>(a.mask + i);
    Lanes<Width> r2{};
    for (int c = 0; c < channels; ++c) {
      const Lanes<Width> x = load<Width>(a.x + c * plane + i);
      const Lanes<Width> g = load<Width>(a.g + c * plane + i);
      Lanes<Width> cotangent;
#pragma unroll
      for (int k = 0; k < Width; ++k) {
        const float r = g.v[k] - x.v[k];
        const float keep = 1.0f - mask.v[k];
        r2.v[k] += r * r;
        sum += rgi_fit(r, keep);
        cotangent.v[k] = rgi_fit_cotangent(r, keep, twice_scale);
      }
      store<Width>(a.cotangent + c * plane + i, cotangent);
    }
    Lanes<Width> mask_gradient;
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      sum += rgi_sparsity(mask.v[k], a.lam);
      mask_gradient.v[k] = rgi_mask_gradient(mask.v[k], r2.v[k], a.lam, a.scale);
    }
    store<Width>(a.mask_gradient + i, mask_gradient);
  }
  return sum;
}

}  // namespace unblemish::cuda

// mask, mask_gradient: (batch, 1, plane); per element as in unblemish_rgi_closed_form.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_rgi_gradient(const float* __restrict__ x, const float* __restrict__ g, const float* __restrict__ mask,
                           const float* __restrict__ lam, const float* __restrict__ scale,
                           float* __restrict__ cotangent, float* __restrict__ mask_gradient,
                           double* __restrict__ partial, int batch, int channels, size_t plane) {
  using namespace unblemish::cuda;
  const bool wide = plane % 4 == 0 && aligned(x, g, mask, cotangent, mask_gradient);
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const size_t image = b * channels * plane, row = b * plane;
    const Gradient item{x + image,         g + image,          mask + row, lam[b], scale[b],
                        cotangent + image, mask_gradient + row};
    write_partial(partial, b, wide ? gradient<4>(item, channels, plane) : gradient<1>(item, channels, plane));
  }
}
