// Projection of rows on l2 balls; see include/unblemish/project_ball.hpp.
//
// Three launches: squared distances per block, unblemish_finish_sum with scale = nullptr, the move.
#include "common.cuh"
#include "unblemish/project_ball.hpp"

// centre: nullptr for 0.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_squared_distance(const float* __restrict__ p, const float* __restrict__ centre,
                               double* __restrict__ partial, int batch, size_t length) {
  using namespace unblemish::cuda;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    double sum = 0.0;
    for (size_t i = first(1); i < length; i += stride(1)) {
      const size_t k = b * length + i;
      sum += unblemish::squared_distance(p[k], centre == nullptr ? 0.0f : centre[k]);
    }
    write_partial(partial, b, sum);
  }
}

// squared: (batch), what unblemish_finish_sum made.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_project_ball(float* __restrict__ p, const float* __restrict__ centre,
                           const float* __restrict__ radius, const double* __restrict__ squared, int batch,
                           size_t length) {
  using namespace unblemish::cuda;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const double factor = unblemish::ball_factor(squared[b], radius[b]);
    if (factor == 1.0) continue;
    for (size_t i = first(1); i < length; i += stride(1)) {
      const size_t k = b * length + i;
      p[k] = unblemish::towards_centre(p[k], centre == nullptr ? 0.0f : centre[k], factor);
    }
  }
}
