// RGI with absolute residuals: minimised over the mask, and with a free mask. Source: seed 000, eq. 3.
//
// For the residual a = sum over the channels that share a mask element of |r|,
//     min over M of |1 - M| a + lam |M|   is reached at   M = 0 where a <= lam, else 1.
// partial: batch x gridDim.x; unblemish_finish_sum makes the objective of it. Where every element has a mask of its
// own, channels = 1 and plane = C H W.
#include "common.cuh"
#include "unblemish/residual.hpp"
#include "unblemish/rgi_gradient.hpp"

extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_rgi_closed_form_l1(const float* __restrict__ x, const float* __restrict__ g,
                                 const float* __restrict__ lam, const float* __restrict__ scale,
                                 float* __restrict__ mask, float* __restrict__ cotangent,
                                 double* __restrict__ partial, int batch, int channels, size_t plane) {
  using namespace unblemish::cuda;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    double sum = 0.0;
    for (size_t i = first(1); i < plane; i += stride(1)) {
      float size = 0.0f;
      for (int c = 0; c < channels; ++c) {
        const size_t k = (b * channels + c) * plane + i;
        size += fabsf(g[k] - x[k]);
      }
      const float keep = size <= lam[b] ? 1.0f : 0.0f;
      mask[b * plane + i] = 1.0f - keep;
      sum += lam[b] * (1.0f - keep);
      for (int c = 0; c < channels; ++c) {
        const size_t k = (b * channels + c) * plane + i;
        const float r = g[k] - x[k];
        sum += unblemish::l1_value(r, keep);  // NaN where r is not finite, masked or not
        cotangent[k] = unblemish::l1_cotangent(r, keep, scale[b]);
      }
    }
    write_partial(partial, b, sum);
  }
}

// scale (sum |1 - M| |r| + lam sum |M|), M free, and its derivatives.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_rgi_gradient_l1(const float* __restrict__ x, const float* __restrict__ g,
                              const float* __restrict__ mask, const float* __restrict__ lam,
                              const float* __restrict__ scale, float* __restrict__ cotangent,
                              float* __restrict__ mask_gradient, double* __restrict__ partial, int batch,
                              int channels, size_t plane) {
  using namespace unblemish::cuda;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    double sum = 0.0;
    for (size_t i = first(1); i < plane; i += stride(1)) {
      const float m = mask[b * plane + i], keep = 1.0f - m;
      const float sign = m > 0.0f ? 1.0f : (m < 0.0f ? -1.0f : m);
      const float way = keep > 0.0f ? 1.0f : (keep < 0.0f ? -1.0f : keep);
      float size = 0.0f;
      for (int c = 0; c < channels; ++c) {
        const size_t k = (b * channels + c) * plane + i;
        const float r = g[k] - x[k];
        size += fabsf(r);
        sum += unblemish::l1_value(r, fabsf(keep));
        cotangent[k] = unblemish::l1_cotangent(r, fabsf(keep), scale[b]);
      }
      mask_gradient[b * plane + i] = scale[b] * (lam[b] * sign - way * size);
      sum += unblemish::rgi_sparsity(m, lam[b]);
    }
    write_partial(partial, b, sum);
  }
}
