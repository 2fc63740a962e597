// Adan with clipping, a step size per component and projection; see include/unblemish/adan.hpp.
#include "common.cuh"
#include "unblemish/adan.hpp"

namespace unblemish::cuda {

struct Adan {
  float* n;
  const float* x;
  const float* g;
  float* first;
  float* slope;
  float* second;
  float* previous;
  const unsigned char* free;
  float rate;
};

template <int Width>
__device__ void adan(const Adan a, const AdanStep& step, size_t count) {
  for (size_t i = first(Width); i < count; i += stride(Width)) {
    Lanes<Width> n = load<Width>(a.n + i), one = load<Width>(a.first + i), two = load<Width>(a.slope + i);
    Lanes<Width> three = load<Width>(a.second + i), last = load<Width>(a.previous + i);
    const Lanes<Width> x = load<Width>(a.x + i), g = load<Width>(a.g + i);
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      AdanMoments m{one.v[k], two.v[k], three.v[k], last.v[k]};
      const float moved = adan_move(n.v[k], x.v[k], adan_direction(m, g.v[k], step), a.rate, step);
      if (a.free[i + k] != 0) n.v[k] = moved;
      one.v[k] = m.first;
      two.v[k] = m.slope;
      three.v[k] = m.second;
      last.v[k] = m.previous;
    }
    store<Width>(a.n + i, n);
    store<Width>(a.first + i, one);
    store<Width>(a.slope + i, two);
    store<Width>(a.second + i, three);
    store<Width>(a.previous + i, last);
  }
}

// batch counts planes: items times channels.
__device__ void adan_planes(const Adan& a, const float* rate, const AdanStep& step, int batch, int channels,
                            size_t plane) {
  const bool wide = plane % 4 == 0 && aligned(a.n, a.x, a.g, a.first, a.slope, a.second, a.previous);
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const size_t i = b * plane, item = b / channels;
    const Adan row{a.n + i,      a.x + i,        a.g + i,       a.first + i, a.slope + i, a.second + i, a.previous + i,
                   a.free + item * plane, rate[item]};
    if (wide)
      adan<4>(row, step, plane);
    else
      adan<1>(row, step, plane);
  }
}

}  // namespace unblemish::cuda

// `step`: thirteen floats made on the host by unblemish::adan_step. `batch` counts planes: items times
// channels. rate: (items); free: (items, plane).
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_adan(float* __restrict__ n, const float* __restrict__ x, const float* __restrict__ g,
                   float* __restrict__ first, float* __restrict__ slope, float* __restrict__ second,
                   float* __restrict__ previous, const unsigned char* __restrict__ free,
                   const float* __restrict__ rate, unblemish::AdanStep step, int batch, int channels, size_t plane) {
  unblemish::cuda::adan_planes({n, x, g, first, slope, second, previous, free, 0.0f}, rate, step, batch, channels,
                               plane);
}

// As unblemish_adan, with the step's constants steps[at[0]]: one captured launch serves every step.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 2)
    unblemish_adan_scheduled(float* __restrict__ n, const float* __restrict__ x, const float* __restrict__ g,
                             float* __restrict__ first, float* __restrict__ slope, float* __restrict__ second,
                             float* __restrict__ previous, const unsigned char* __restrict__ free,
                             const float* __restrict__ rate, const unblemish::AdanStep* __restrict__ steps,
                             const int* __restrict__ at, int batch, int channels, size_t plane) {
  __shared__ unblemish::AdanStep step;
  if (threadIdx.x == 0) step = steps[at[0]];
  __syncthreads();
  unblemish::cuda::adan_planes({n, x, g, first, slope, second, previous, free, 0.0f}, rate, step, batch, channels,
                               plane);
}
