// Reductions: norms, finiteness, and the second step of every two-step sum; see norms.hpp.
#include "common.cuh"
#include "unblemish/norms.hpp"

namespace unblemish::cuda {

struct Norms {
  double squared;
  float largest;
};

template <int Width>
__device__ void norms(const float* x, size_t length, Norms& found) {
  for (size_t i = first(Width); i < length; i += stride(Width)) {
    const Lanes<Width> value = load<Width>(x + i);
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      found.squared += square(value.v[k]);
      found.largest = larger(found.largest, magnitude(value.v[k]));
    }
  }
}

}  // namespace unblemish::cuda

// squared, largest: partial results, batch x gridDim.x; unblemish_finish_norms ends them.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_norms(const float* __restrict__ x, double* __restrict__ squared, double* __restrict__ largest,
                    int batch, size_t length) {
  using namespace unblemish::cuda;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    Norms found{0.0, 0.0f};
    if (length % 4 == 0 && aligned(x))
      norms<4>(x + b * length, length, found);
    else
      norms<1>(x + b * length, length, found);
    write_partial(squared, b, found.squared);
    write_partial<Max>(largest, b, found.largest);
  }
}

// finite: one int, set to 1 by the caller. Every thread that writes writes 0.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_all_finite(const float* __restrict__ x, int* __restrict__ finite, size_t count) {
  using namespace unblemish::cuda;
  unsigned bad = 0;
  for (size_t i = first(1); i < count; i += stride(1)) bad |= unblemish::not_finite(x[i]);
  if (bad != 0) *finite = 0;
}

namespace unblemish::cuda {

template <class Op>
__device__ double finish(const double* partial, size_t item, int blocks) {
  double value = 0.0;
  for (int k = static_cast<int>(threadIdx.x); k < blocks; k += kThreads)
    value = Op::apply(value, partial[item * blocks + k]);
  return reduce_block<Op>(value);
}

}  // namespace unblemish::cuda

// One block per item: gridDim = (batch, 1, 1). blocks: gridDim.x of the first step. scale: nullptr for 1.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_finish_sum(const double* __restrict__ partial, const float* __restrict__ scale,
                         double* __restrict__ out, int blocks) {
  using namespace unblemish::cuda;
  const double sum = finish<Add>(partial, blockIdx.x, blocks);
  if (threadIdx.x == 0) out[blockIdx.x] = scale == nullptr ? sum : sum * scale[blockIdx.x];
}

// As unblemish_finish_sum, added to what `out` holds.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_finish_added_sum(const double* __restrict__ partial, const float* __restrict__ scale,
                               double* __restrict__ out, int blocks) {
  using namespace unblemish::cuda;
  const double sum = finish<Add>(partial, blockIdx.x, blocks);
  if (threadIdx.x == 0) out[blockIdx.x] += scale == nullptr ? sum : sum * scale[blockIdx.x];
}

extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_finish_norms(const double* __restrict__ squared_partial, const double* __restrict__ largest_partial,
                           double* __restrict__ squared, double* __restrict__ largest, int blocks) {
  using namespace unblemish::cuda;
  const double sum = finish<Add>(squared_partial, blockIdx.x, blocks);
  const double peak = finish<Max>(largest_partial, blockIdx.x, blocks);
  if (threadIdx.x == 0) {
    squared[blockIdx.x] = sum;
    largest[blockIdx.x] = unblemish::largest_or_nan(sum, static_cast<float>(peak));
  }
}
