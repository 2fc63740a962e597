// Fine-tuning: what it adds to the objective, and steps of many weights at once; see runtime/device/finetuning.py.
#include <math.h>

#include "common.cuh"
#include "unblemish/adam.hpp"
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

// A piece of a gradient: where it lies, where its weights begin in the array of all, and its length.
struct Chunk {
  const float* gradient;
  size_t first;
  size_t count;
};

__device__ inline Chunk chunk(const unsigned long long* table, size_t c) {
  const unsigned long long* row = table + 3 * c;
  return {reinterpret_cast<const float*>(row[0]), static_cast<size_t>(row[1]), static_cast<size_t>(row[2])};
}

template <int Width>
__device__ void move(float* p, float* m, float* v, const float* gradient, const AdamStep& step, size_t from,
                     size_t count) {
  for (size_t i = from + threadIdx.x * Width; i < count; i += kThreads * Width) {
    Lanes<Width> pi = load<Width>(p + i), mi = load<Width>(m + i), vi = load<Width>(v + i);
    const Lanes<Width> gi = load<Width>(gradient + i);
#pragma unroll
    for (int k = 0; k < Width; ++k) adam_update(pi.v[k], mi.v[k], vi.v[k], gi.v[k], step);
    store<Width>(p + i, pi);
    store<Width>(m + i, mi);
    store<Width>(v + i, vi);
  }
}

template <int Width>
__device__ bool any_not_finite(const float* x, size_t from, size_t count) {
  unsigned bad = 0;
  for (size_t i = from + threadIdx.x * Width; i < count; i += kThreads * Width) {
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

// As unblemish_adam_scheduled, of weights whose gradients lie apart. table: (chunks, 3), see Chunk. gridDim = (blocks, 1).
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_adam_chunks(float* __restrict__ p, float* __restrict__ m, float* __restrict__ v,
                          const unsigned long long* __restrict__ table,
                          const unblemish::AdamStep* __restrict__ steps, const int* __restrict__ at, int chunks) {
  using namespace unblemish::cuda;
  const unblemish::AdamStep step = steps[at[0]];
  for (size_t c = blockIdx.x; c < static_cast<size_t>(chunks); c += gridDim.x) {
    const Chunk a = chunk(table, c);
    float *pc = p + a.first, *mc = m + a.first, *vc = v + a.first;
    const size_t wide = aligned(pc, mc, vc, a.gradient) ? a.count / 4 * 4 : 0;
    move<4>(pc, mc, vc, a.gradient, step, 0, wide);
    move<1>(pc, mc, vc, a.gradient, step, wide, a.count);
  }
}

// The objective becomes NaN where a gradient is not finite. Every thread that writes writes the same.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_void_chunks(const unsigned long long* __restrict__ table, double* __restrict__ objective, int chunks) {
  using namespace unblemish::cuda;
  for (size_t c = blockIdx.x; c < static_cast<size_t>(chunks); c += gridDim.x) {
    const Chunk a = chunk(table, c);
    const size_t wide = aligned(a.gradient) ? a.count / 4 * 4 : 0;
    if (any_not_finite<4>(a.gradient, 0, wide) || any_not_finite<1>(a.gradient, wide, a.count)) objective[0] = NAN;
  }
}
