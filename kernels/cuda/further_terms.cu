// Further terms of RGI's objective, computed by engines of their own; see runtime/methods/terms.py.
#include <math.h>

#include "common.cuh"

// kept = (1 - mask) x. mask: (batch, 1, plane), or nullptr for 0; with a mask per element channels = 1 and
// plane = C H W. added: onto what `kept` holds.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_keep_unmasked(const float* __restrict__ x, const float* __restrict__ mask, float* __restrict__ kept,
                            int added, int batch, int channels, size_t plane) {
  using namespace unblemish::cuda;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    for (size_t i = first(1); i < plane; i += stride(1)) {
      const float keep = mask == nullptr ? 1.0f : 1.0f - mask[b * plane + i];
      for (int c = 0; c < channels; ++c) {
        const size_t k = (b * channels + c) * plane + i;
        kept[k] = keep * x[k] + (added != 0 ? kept[k] : 0.0f);
      }
    }
  }
}

// objective += more, a thread for each item.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_add_values(const double* __restrict__ more, double* __restrict__ objective, int batch) {
  using namespace unblemish::cuda;
  for (size_t b = first(1); b < static_cast<size_t>(batch); b += stride(1)) objective[b] += more[b];
}

// objective += weight mean softplus(-logit) over the `size` logits of an item, and the slope of each. One block per
// item: gridDim = (items, 1). softplus(-t) = max(-t, 0) + log(1 + exp(-|t|)) neither overflows nor loses digits.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_disbelief(const float* __restrict__ logit, double weight, float* __restrict__ slope,
                        double* __restrict__ objective, size_t size) {
  using namespace unblemish::cuda;
  const size_t row = blockIdx.x * size;
  double sum = 0.0;
  for (size_t i = threadIdx.x; i < size; i += kThreads) {
    const double t = logit[row + i];
    sum += (t < 0.0 ? -t : 0.0) + log1p(exp(-fabs(t)));
    slope[row + i] = static_cast<float>(-weight / (size * (1.0 + exp(t))));
  }
  sum = reduce_block<Add>(sum);
  if (threadIdx.x == 0) objective[blockIdx.x] += weight * sum / size;
}
