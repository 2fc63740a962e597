// One row added to many: what the surroundings of a crop add to the features of all its versions.
#include "common.cuh"

namespace unblemish::cuda {

template <int Width>
__device__ void add_row(float* x, const float* row, size_t length) {
  for (size_t i = first(Width); i < length; i += stride(Width)) {
    Lanes<Width> sum = load<Width>(x + i);
    const Lanes<Width> more = load<Width>(row + i);
#pragma unroll
    for (int k = 0; k < Width; ++k) sum.v[k] += more.v[k];
    store<Width>(x + i, sum);
  }
}

}  // namespace unblemish::cuda

// Add one row to every row of x, (batch, length).
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_add_row(float* __restrict__ x, const float* __restrict__ row, int batch, size_t length) {
  using namespace unblemish::cuda;
  const bool wide = length % 4 == 0 && aligned(x, row);
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    if (wide)
      add_row<4>(x + b * length, row, length);
    else
      add_row<1>(x + b * length, row, length);
  }
}
