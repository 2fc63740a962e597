// Between native windows and model crops: resampling along one axis, with tables of an item's own.
#include "common.cuh"

// out = gain * sum over k of weights[j, k] (x - base)[start[j] + k] + plus, from (batch, outer, before, inner) to
// (batch, outer, after, inner). start: (sets, after), so that all taps lie inside; weights: (sets, after, taps).
// base, plus: of `sets` items, as x and out, or nullptr. Item b takes set b % sets.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_project_axis(const float* __restrict__ x, const float* __restrict__ base,
                           const int* __restrict__ start, const float* __restrict__ weights, int taps, float gain,
                           const float* __restrict__ plus, float* __restrict__ out, int batch, int sets,
                           size_t outer, int before, int after, size_t inner) {
  using namespace unblemish::cuda;
  const size_t length = outer * after * inner, source = outer * before * inner;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const size_t set = b % sets;
    for (size_t i = first(1); i < length; i += stride(1)) {
      const size_t column = i % inner, j = set * after + i / inner % after, row = i / inner / after;
      const size_t from = (row * before + start[j]) * inner + column;
      float sum = 0.0f;
      for (int k = 0; k < taps; ++k) {
        const size_t at = from + k * inner;
        const float offset = base == nullptr ? 0.0f : base[set * source + at];
        sum += weights[j * taps + k] * (x[b * source + at] - offset);
      }
      out[b * length + i] = sum * gain + (plus == nullptr ? 0.0f : plus[set * length + i]);
    }
  }
}
