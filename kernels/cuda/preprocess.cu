// From camera frames to model images: unit intensities and colour, resampling along one axis, tiles.
//
// The bodies are here alone: on the CPU OpenCV does this. Resampling takes its weights from tables made on the
// host, one row of `taps` weights for every element along the axis, so that any filter is the same kernel.
#include <math.h>

#include "common.cuh"

namespace unblemish::cuda {

// Rec. 601 luma, as OpenCV has it.
__device__ __forceinline__ float luma(float r, float g, float b) { return 0.299f * r + 0.587f * g + 0.114f * b; }

// (H, W, from) interleaved to (to, H, W) planes in [0, 1]. Of 2 and 4 channels the last is alpha, and dropped.
template <class Level>
__device__ void to_planes(const Level* frames, float* out, float inverse_white, int batch, int from, int to,
                          size_t plane) {
  const bool colour = from >= 3;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y)
    for (size_t i = first(1); i < plane; i += stride(1)) {
      const Level* p = frames + (b * plane + i) * from;
      const float one = static_cast<float>(p[0]) * inverse_white;
      const float two = colour ? static_cast<float>(p[1]) * inverse_white : one;
      const float three = colour ? static_cast<float>(p[2]) * inverse_white : one;
      float* at = out + b * to * plane + i;
      if (to == 1) {
        at[0] = colour ? luma(one, two, three) : one;
        continue;
      }
      at[0] = one;
      at[plane] = two;
      at[2 * plane] = three;
    }
}

}  // namespace unblemish::cuda

// frames: (batch, plane, from), from 1 to 4; out: (batch, to, plane), to 1 or 3.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_planes_of_bytes(const unsigned char* __restrict__ frames, float* __restrict__ out, float inverse_white,
                              int batch, int from, int to, size_t plane) {
  unblemish::cuda::to_planes(frames, out, inverse_white, batch, from, to, plane);
}

extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_planes_of_words(const std::uint16_t* __restrict__ frames, float* __restrict__ out,
                              float inverse_white, int batch, int from, int to, size_t plane) {
  unblemish::cuda::to_planes(frames, out, inverse_white, batch, from, to, plane);
}

namespace unblemish::cuda {

struct Least {
  __device__ static double apply(double a, double b) { return b < a ? b : a; }
};

struct Most {
  __device__ static double apply(double a, double b) { return b > a ? b : a; }
};

}  // namespace unblemish::cuda

// least, most: partial results, batch x gridDim.x, of numbers that are finite.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_extent(const float* __restrict__ x, double* __restrict__ least, double* __restrict__ most, int batch,
                     size_t length) {
  using namespace unblemish::cuda;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    float low = INFINITY, high = -INFINITY;
    for (size_t i = first(1); i < length; i += stride(1)) {
      low = fminf(low, x[b * length + i]);
      high = fmaxf(high, x[b * length + i]);
    }
    write_partial<Least>(least, b, low);
    write_partial<Most>(most, b, high);
  }
}

// extent: (batch, 2). gridDim = (batch, 1).
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_finish_extent(const double* __restrict__ least, const double* __restrict__ most,
                            float* __restrict__ extent, int blocks) {
  using namespace unblemish::cuda;
  double low = INFINITY, high = -INFINITY;
  for (int k = static_cast<int>(threadIdx.x); k < blocks; k += kThreads) {
    low = Least::apply(low, least[static_cast<size_t>(blockIdx.x) * blocks + k]);
    high = Most::apply(high, most[static_cast<size_t>(blockIdx.x) * blocks + k]);
  }
  low = reduce_block<Least>(low);
  high = reduce_block<Most>(high);
  if (threadIdx.x == 0) {
    extent[2 * blockIdx.x] = static_cast<float>(low);
    extent[2 * blockIdx.x + 1] = static_cast<float>(high);
  }
}

// x: (batch, outer, before, inner) to out: (batch, outer, after, inner). start: (after), where the taps of an
// element begin, so that all lie inside; weights: (after, taps). extent: (batch, 2), what the result is clipped
// to, or nullptr.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_resample(const float* __restrict__ x, const int* __restrict__ start,
                       const float* __restrict__ weights, int taps, const float* __restrict__ extent,
                       float* __restrict__ out, int batch, size_t outer, int before, int after, size_t inner) {
  using namespace unblemish::cuda;
  const size_t length = outer * after * inner;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y)
    for (size_t i = first(1); i < length; i += stride(1)) {
      const size_t column = i % inner, j = i / inner % after, row = i / inner / after;
      const float* from = x + ((b * outer + row) * before + start[j]) * inner + column;
      float sum = 0.0f;
      for (int k = 0; k < taps; ++k) sum += weights[j * taps + k] * from[k * inner];
      if (extent != nullptr) sum = fminf(fmaxf(sum, extent[2 * b]), extent[2 * b + 1]);
      out[b * length + i] = sum;
    }
}

// x: (batch, channels, height, width) to out: (batch, tiles, channels, rows, columns), every tile from its corner
// (tiles, 2: top, left) on, the border repeated beyond the image, as span * x + low.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_cut_tiles(const float* __restrict__ x, const int* __restrict__ corners, float span, float low,
                        float* __restrict__ out, int batch, int tiles, int channels, int height, int width, int rows,
                        int columns) {
  using namespace unblemish::cuda;
  const size_t tile = static_cast<size_t>(channels) * rows * columns, length = tile * tiles;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y)
    for (size_t i = first(1); i < length; i += stride(1)) {
      const int t = static_cast<int>(i / tile), column = static_cast<int>(i % columns);
      const int row = static_cast<int>(i / columns % rows);
      const size_t c = i % tile / (static_cast<size_t>(rows) * columns);
      const int y = min(max(row + corners[2 * t], 0), height - 1);
      const int at = min(max(column + corners[2 * t + 1], 0), width - 1);
      out[b * length + i] = x[((b * channels + c) * height + y) * width + at] * span + low;
    }
}
