// The prior of latents, weight mean z^2, added to an objective; see runtime/methods/terms.py.
#include <math.h>

#include "common.cuh"

// gridDim = (items, 1). The objective of an item whose gradient is not finite becomes infinite, as the loop of the
// host has it; weight 0 is nothing but that.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_latent_prior(const float* __restrict__ z, double weight, float* __restrict__ gradient,
                           double* __restrict__ objective, size_t size) {
  using namespace unblemish::cuda;
  const size_t row = blockIdx.x * size;
  const float slope = static_cast<float>(2.0 * weight / size);
  double squares = 0.0, slopes = 0.0;
  for (size_t i = threadIdx.x; i < size; i += kThreads) {
    const double value = z[row + i];
    squares += value * value;
    slopes += gradient[row + i];
    if (weight != 0.0) gradient[row + i] += slope * z[row + i];
  }
  squares = reduce_block<Add>(squares);
  slopes = reduce_block<Add>(slopes);
  if (threadIdx.x != 0) return;
  if (weight != 0.0) objective[blockIdx.x] += weight * squares / size;
  if (!isfinite(slopes)) objective[blockIdx.x] = static_cast<double>(INFINITY);
}
