// Between native windows and model crops: resampling along one axis, with tables of an item's own.
#include "common.cuh"

// out = gain * sum over k of weights[j, k] (x - base)[start[j] + k] + plus, from (batch, outer, before, inner) to
// (batch, outer, after, inner). start: (sets, after), so that all taps lie inside; weights: (sets, after, taps).
// base, plus: of `sets` items, as x and out, or nullptr. Item b takes set b % sets. An item has fewer than 2^31
// elements.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_project_axis(const float* __restrict__ x, const float* __restrict__ base,
                           const int* __restrict__ start, const float* __restrict__ weights, int taps, float gain,
                           const float* __restrict__ plus, float* __restrict__ out, int batch, int sets,
                           int outer, int before, int after, int inner) {
  using namespace unblemish::cuda;
  const int length = outer * after * inner;
  const size_t source = static_cast<size_t>(outer) * before * inner;
  for (int b = static_cast<int>(blockIdx.y); b < batch; b += static_cast<int>(gridDim.y)) {
    const int set = b % sets;
    const float* item = x + b * source;
    const float* origin = base == nullptr ? nullptr : base + set * source;
    for (int i = static_cast<int>(first(1)); i < length; i += static_cast<int>(stride(1))) {
      const int column = i % inner, j = set * after + i / inner % after, row = i / inner / after;
      const float* w = weights + static_cast<size_t>(j) * taps;
      float sum = 0.0f;
      for (int k = 0, at = (row * before + start[j]) * inner + column; k < taps; ++k, at += inner)
        sum += w[k] * (item[at] - (origin == nullptr ? 0.0f : origin[at]));
      sum *= gain;
      if (plus != nullptr) sum += plus[static_cast<size_t>(set) * length + i];
      out[static_cast<size_t>(b) * length + i] = sum;
    }
  }
}
