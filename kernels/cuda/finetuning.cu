// What fine-tuning adds to the objective of an item; the CPU does it in NumPy (runtime/methods/rrgi.py).
#include <math.h>

#include "common.cuh"
#include "unblemish/norms.hpp"
#include "unblemish/residual.hpp"

namespace unblemish::cuda {

struct Held {
  const float* g;
  const float* before;
  const float* mask;  // one row shared by the channels
  float scale;
  float* cotangent;
};

template <int Width>
__device__ double hold(const Held a, int channels, size_t plane) {
  double sum = 0.0;
  for (size_t i = first(Width); i < plane; i += stride(Width)) {
    Lanes<Width> weight = load<Width>(a.mask + i);
#pragma unroll
    for (int k = 0; k < Width; ++k) weight.v[k] *= weight.v[k];
    for (int c = 0; c < channels; ++c) {
      const Lanes<Width> g = load<Width>(a.g + c * plane + i);
      const Lanes<Width> before = load<Width>(a.before + c * plane + i);
      Lanes<Width> cotangent = load<Width>(a.cotangent + c * plane + i);
#pragma unroll
      for (int k = 0; k < Width; ++k) {
        const float drift = g.v[k] - before.v[k];
        sum += l2_value(drift, weight.v[k]);
        cotangent.v[k] += l2_cotangent(drift, weight.v[k], 2.0f * a.scale);
      }
      store<Width>(a.cotangent + c * plane + i, cotangent);
    }
  }
  return sum;
}

template <int Width>
__device__ bool any_not_finite(const float* x, size_t length) {
  unsigned bad = 0;
  for (size_t i = first(Width); i < length; i += stride(Width)) {
    const Lanes<Width> value = load<Width>(x + i);
#pragma unroll
    for (int k = 0; k < Width; ++k) bad |= not_finite(value.v[k]);
  }
  return bad != 0;
}

}  // namespace unblemish::cuda

// Add scale sum (M (g - before))^2: its derivative to the cotangent, its partial sums for unblemish_finish_added_sum.
//
// mask: (batch, 1, plane); per element as in unblemish_rgi_closed_form.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_hold(const float* __restrict__ g, const float* __restrict__ before, const float* __restrict__ mask,
                   const float* __restrict__ scale, float* __restrict__ cotangent, double* __restrict__ partial,
                   int batch, int channels, size_t plane) {
  using namespace unblemish::cuda;
  const bool wide = plane % 4 == 0 && aligned(g, before, mask, cotangent);
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const size_t image = b * channels * plane;
    const Held item{g + image, before + image, mask + b * plane, scale[b], cotangent + image};
    write_partial(partial, b, wide ? hold<4>(item, channels, plane) : hold<1>(item, channels, plane));
  }
}

// The objective of an item becomes NaN where its row of x is not finite. Every thread that writes writes the same.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_void_rows(const float* __restrict__ x, double* __restrict__ objective, int batch, size_t length) {
  using namespace unblemish::cuda;
  const bool wide = length % 4 == 0 && aligned(x);
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const float* row = x + b * length;
    if (wide ? any_not_finite<4>(row, length) : any_not_finite<1>(row, length)) objective[b] = NAN;
  }
}
