// Cells of a detector between its passes: surroundings of crops, rows for the flow and back, sums of scores.
// What is indexed by int has fewer than 2^31 elements.
#include <math.h>

#include "common.cuh"

// correction = the part of the whole image's features that a crop shows, minus the crop's own.
// whole: (any, width, channels), rows of cells. features, correction: (rows, columns, channels).
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_learn_surroundings(const float* __restrict__ whole, const float* __restrict__ features,
                                 float* __restrict__ correction, int top, int left, int width, int rows, int columns,
                                 int channels) {
  using namespace unblemish::cuda;
  const int row = columns * channels, length = row * rows;
  for (int i = static_cast<int>(first(1)); i < length; i += static_cast<int>(stride(1))) {
    const size_t cells = static_cast<size_t>(i / row + top) * width + left;
    correction[i] = whole[cells * channels + i % row] - features[i];
  }
}

// out: (count, width) = channels [from, from + width) of the rows of x, (any, channels), that `rows` names.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_take_rows(const float* __restrict__ x, const int* __restrict__ rows, float* __restrict__ out,
                        int count, int channels, int from, int width) {
  using namespace unblemish::cuda;
  for (int i = static_cast<int>(first(1)); i < count * width; i += static_cast<int>(stride(1)))
    out[i] = x[static_cast<size_t>(rows[i / width]) * channels + from + i % width];
}

// The way back: channels [from, from + width) of every row of x, (count, channels), = row of[i] of `rows`.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_spread_rows(const float* __restrict__ rows, const int* __restrict__ of, float* __restrict__ x,
                          int count, int channels, int from, int width) {
  using namespace unblemish::cuda;
  for (int i = static_cast<int>(first(1)); i < count * width; i += static_cast<int>(stride(1)))
    x[static_cast<size_t>(i / width) * channels + from + i % width] =
        rows[static_cast<size_t>(of[i / width]) * width + i % width];
}

// CFLOW-AD: surprise = log(1 + exp(t - l)) and its slope by l, -1 / (1 + exp(l - t)); slope may be nullptr.
// likelihood, typical: l and t, (count).
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_surprise(const float* __restrict__ likelihood, const float* __restrict__ typical,
                       float* __restrict__ surprise, float* __restrict__ slope, size_t count) {
  using namespace unblemish::cuda;
  for (size_t i = first(1); i < count; i += stride(1)) {
    const float below = typical[i] - likelihood[i];
    surprise[i] = fmaxf(below, 0.0f) + log1pf(expf(-fabsf(below)));
    if (slope != nullptr) slope[i] = -1.0f / (1.0f + expf(-below));
  }
}

// scores: (count) = value[of[i]], added to what is there unless `fresh`.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_add_taken(const float* __restrict__ value, const int* __restrict__ of, float* __restrict__ scores,
                        size_t count, int fresh) {
  using namespace unblemish::cuda;
  for (size_t i = first(1); i < count; i += stride(1))
    scores[i] = (fresh != 0 ? 0.0f : scores[i]) + value[of[i]];
}

// partial: batch x gridDim.x, of the rows of x, (batch, length); unblemish_finish_sum ends them.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_sum_rows(const float* __restrict__ x, double* __restrict__ partial, int batch, size_t length) {
  using namespace unblemish::cuda;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    double sum = 0.0;
    for (size_t i = first(1); i < length; i += stride(1)) sum += x[b * length + i];
    write_partial(partial, b, sum);
  }
}
