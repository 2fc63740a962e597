// Adam and projection on a box; see include/unblemish/adam.hpp.
#include "common.cuh"
#include "unblemish/adam.hpp"

namespace unblemish::cuda {

template <int Width>
__device__ void adam(float* p, const float* grad, float* m, float* v, const AdamStep& step, size_t start,
                     size_t count) {
  for (size_t i = start + first(Width); i < count; i += stride(Width)) {
    Lanes<Width> pi = load<Width>(p + i), mi = load<Width>(m + i), vi = load<Width>(v + i);
    const Lanes<Width> gi = load<Width>(grad + i);
#pragma unroll
    for (int k = 0; k < Width; ++k) adam_update(pi.v[k], mi.v[k], vi.v[k], gi.v[k], step);
    store<Width>(p + i, pi);
    store<Width>(m + i, mi);
    store<Width>(v + i, vi);
  }
}

}  // namespace unblemish::cuda

// `step`: eight floats made on the host by unblemish::adam_step.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_adam(float* __restrict__ p, const float* __restrict__ grad, float* __restrict__ m,
                   float* __restrict__ v, unblemish::AdamStep step, size_t count) {
  using namespace unblemish::cuda;
  const size_t wide = aligned(p, grad, m, v) ? count / 4 * 4 : 0;
  adam<4>(p, grad, m, v, step, 0, wide);
  adam<1>(p, grad, m, v, step, wide, count);
}

// As unblemish_adam, with the step's constants steps[at[0]]: one captured launch serves every step.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_adam_scheduled(float* __restrict__ p, const float* __restrict__ grad, float* __restrict__ m,
                             float* __restrict__ v, const unblemish::AdamStep* __restrict__ steps,
                             const int* __restrict__ at, size_t count) {
  using namespace unblemish::cuda;
  const unblemish::AdamStep step = steps[at[0]];
  const size_t wide = aligned(p, grad, m, v) ? count / 4 * 4 : 0;
  adam<4>(p, grad, m, v, step, 0, wide);
  adam<1>(p, grad, m, v, step, wide, count);
}
