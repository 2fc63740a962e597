// L-BFGS over a batch, every item with its own memory and step length; runtime/solvers/lbfgs.py says what is done.
//
// A step is three launches: unblemish_lbfgs_step takes in value and gradient at the trial, unblemish_settle_stages
// decides about the item, unblemish_lbfgs_trial makes the next trial. One block per item; a thread has the same
// elements of every row throughout, so that only sums and what is remembered of the pairs pass between threads.
#include <math.h>

#include "common.cuh"

namespace unblemish::cuda {

constexpr int kPairs = 8;             // remembered
constexpr double kSufficient = 1e-4;  // Armijo's constant
constexpr double kCurvature = 1e-10;  // smallest cosine between step and change of gradient that is remembered
constexpr double kShortest = 1e-3;    // step lengths below this share of the direction are given up

// The rows of one item, `size` each; scale: nullptr for 1.
struct Descent {
  double* u;
  const double* trial;
  double* gradient;
  double* direction;
  double* s;    // (kPairs, size), a ring
  double* y;    // as s
  double* rho;  // (kPairs) in shared memory; 0 where there is no pair
  const double* scale;
  size_t size;
  int newest;  // pair

  __device__ double scale_at(size_t i) const { return scale == nullptr ? 1.0 : scale[i]; }
  __device__ int pair(int age) const { return (newest + kPairs - age) % kPairs; }
};

// The sum of term(i) over i < size, in every thread.
template <class Term>
__device__ double sum_over(size_t size, Term term) {
  __shared__ double total;
  double sum = 0.0;
  for (size_t i = threadIdx.x; i < size; i += kThreads) sum += term(i);
  sum = reduce_block<Add>(sum);
  if (threadIdx.x == 0) total = sum;
  __syncthreads();
  return total;  // read by all before reduce_block lets anyone on
}

template <class Change>
__device__ void for_each(size_t size, Change change) {
  for (size_t i = threadIdx.x; i < size; i += kThreads) change(i);
}

// Keep the step to the trial and what it changed of the gradient, unless its curvature is poor.
__device__ inline void remember(Descent& d, const float* fresh_gradient) {
  const auto s = [&](size_t i) { return d.trial[i] - d.u[i]; };
  const auto y = [&](size_t i) { return fresh_gradient[i] * d.scale_at(i) - d.gradient[i]; };
  const double product = sum_over(d.size, [&](size_t i) { return s(i) * y(i); });
  const double ss = sum_over(d.size, [&](size_t i) { return s(i) * s(i); });
  const double yy = sum_over(d.size, [&](size_t i) { return y(i) * y(i); });
  const double both = sqrt(ss) * sqrt(yy);
  if (!(product > kCurvature * both && both > 0.0)) return;
  d.newest = (d.newest + 1) % kPairs;
  const size_t row = d.newest * d.size;
  for_each(d.size, [&](size_t i) {
    d.s[row + i] = s(i);
    d.y[row + i] = y(i);
  });
  if (threadIdx.x == 0) d.rho[d.newest] = 1.0 / product;
  __syncthreads();
}

// direction = inverse Hessian times gradient (Nocedal & Wright, algorithm 7.4).
__device__ inline void two_loop(const Descent& d) {
  __shared__ double alpha[kPairs];
  double* q = d.direction;
  for_each(d.size, [&](size_t i) { q[i] = d.gradient[i]; });
  for (int age = 0; age < kPairs; ++age) {
    const int k = d.pair(age);
    if (d.rho[k] == 0.0) continue;
    const double *s = d.s + k * d.size, *y = d.y + k * d.size;
    const double step = d.rho[k] * sum_over(d.size, [&](size_t i) { return s[i] * q[i]; });
    if (threadIdx.x == 0) alpha[age] = step;  // seen by all behind the barriers of the next sum
    for_each(d.size, [&](size_t i) { q[i] -= step * y[i]; });
  }
  if (const double rho = d.rho[d.newest]; rho != 0.0) {
    const double* y = d.y + d.newest * d.size;
    const double yy = sum_over(d.size, [&](size_t i) { return y[i] * y[i]; });
    for_each(d.size, [&](size_t i) { q[i] /= rho * yy; });
  }
  for (int age = kPairs - 1; age >= 0; --age) {
    const int k = d.pair(age);
    if (d.rho[k] == 0.0) continue;
    const double *s = d.s + k * d.size, *y = d.y + k * d.size;
    const double beta = d.rho[k] * sum_over(d.size, [&](size_t i) { return y[i] * q[i]; });
    const double step = alpha[age] - beta;
    for_each(d.size, [&](size_t i) { q[i] += step * s[i]; });
  }
}

// A new direction, no longer than its bound in the unscaled variables.
__device__ inline void aim(const Descent& d, double value, double first, double longest) {
  two_loop(d);
  const bool blind = d.rho[d.newest] == 0.0;
  double factor = -1.0;
  if (blind && d.scale == nullptr) {  // without curvature the gradient has no length of its own
    const double steep = sum_over(d.size, [&](size_t i) { return d.gradient[i] * d.gradient[i]; });
    factor = -0.5 * fabs(value) / fmax(steep, 1e-300);
  }
  const double squared = sum_over(d.size, [&](size_t i) {
    const double move = factor * d.direction[i] * d.scale_at(i);
    return move * move;
  });
  const double bound = (blind ? first : longest) * sqrt(static_cast<double>(d.size));
  factor *= fmin(1.0, bound / fmax(sqrt(squared), 1e-300));
  for_each(d.size, [&](size_t i) { d.direction[i] *= factor; });
}

// The share of its length that a refused step keeps: where the parabola through the refused value is lowest.
__device__ inline double shortened(double excess, double slope) {
  const double ratio = isfinite(excess) && excess > 0.0 ? -slope / (2.0 * excess) : 0.25;
  return isnan(ratio) ? 0.25 : fmin(fmax(ratio, 0.1), 0.5);
}

}  // namespace unblemish::cuda

// gridDim = (items, 1). objective, loss_gradient: at the trial. scale: (size) or nullptr. items that have
// ended stay as they are. seen: the objective, infinity where it or the gradient is not finite. Before the first
// step value is infinity, gradient, direction, rho and newest 0, fresh 1; see LbfgsState for what they are.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 2)
    unblemish_lbfgs_step(const double* __restrict__ objective, const float* __restrict__ loss_gradient,
                         const double* __restrict__ scale, const int* __restrict__ ended, double first_bound,
                         double longest_bound, double* __restrict__ seen, double* __restrict__ value,
                         double* __restrict__ length, double* __restrict__ u, const double* __restrict__ trial,
                         double* __restrict__ gradient, double* __restrict__ direction, double* __restrict__ s,
                         double* __restrict__ y, double* __restrict__ rho, int* __restrict__ newest,
                         int* __restrict__ fresh, int* __restrict__ moved, int* __restrict__ stuck, size_t size) {
  using namespace unblemish::cuda;
  const size_t b = blockIdx.x, row = b * size;
  if (ended[b] != 0) return;
  __shared__ double memory[kPairs];
  if (threadIdx.x < kPairs) memory[threadIdx.x] = rho[b * kPairs + threadIdx.x];
  const float* slopes = loss_gradient + row;
  Descent d{u + row,           trial + row,       gradient + row, direction + row, s + kPairs * row,
            y + kPairs * row, memory, scale,   size,           newest[b]};
  const double before = value[b], old_length = length[b];
  const bool renewed = fresh[b] != 0;
  const double total = sum_over(size, [&](size_t i) { return static_cast<double>(slopes[i]); });
  const double slope = old_length * sum_over(size, [&](size_t i) { return d.direction[i] * d.gradient[i]; });
  const bool finite = isfinite(objective[b]) && isfinite(total);
  const double now = finite ? objective[b] : static_cast<double>(INFINITY);
  const bool accepted = finite && (renewed || now <= before + kSufficient * slope);
  bool hopeless = renewed && !finite;
  double new_length = 1.0;
  if (accepted) {
    if (!renewed) remember(d, slopes);
    for_each(size, [&](size_t i) {
      d.u[i] = d.trial[i];
      d.gradient[i] = slopes[i] * d.scale_at(i);
    });
    aim(d, now, first_bound, longest_bound);
  } else if (!hopeless) {
    new_length = old_length * shortened(now - before - slope, slope);
    if (new_length < kShortest) {
      hopeless = d.rho[d.newest] == 0.0;
      __syncthreads();  // all have seen it
      if (!hopeless) {  // as a last resort drop the memory
        if (threadIdx.x < kPairs) memory[threadIdx.x] = 0.0;
        __syncthreads();
        aim(d, before, first_bound, longest_bound);
        new_length = 1.0;
      }
    }
  }
  if (threadIdx.x < kPairs) rho[b * kPairs + threadIdx.x] = memory[threadIdx.x];
  if (threadIdx.x != 0) return;
  seen[b] = now;
  if (accepted) value[b] = now;
  length[b] = new_length;
  newest[b] = d.newest;
  fresh[b] = 0;
  moved[b] = accepted ? 1 : 0;
  if (hopeless) stuck[b] = 1;
}

// The next trial, and what the engine sees of it: (u + length direction) scale, or u itself where it is to be looked
// at again or nothing helps. trial: where the step really goes, rounding is not small against the last steps.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_lbfgs_trial(const double* __restrict__ u, const double* __restrict__ direction,
                          const double* __restrict__ length, const double* __restrict__ scale,
                          const int* __restrict__ fresh, const int* __restrict__ stuck,
                          const int* __restrict__ ended, double* __restrict__ trial, float* __restrict__ query,
                          int batch, size_t size) {
  using namespace unblemish::cuda;
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    if (ended[b] != 0) continue;
    const double move = fresh[b] != 0 || stuck[b] != 0 ? 0.0 : length[b];
    for (size_t i = first(1); i < size; i += stride(1)) {
      const size_t k = b * size + i;
      const double unit = scale == nullptr ? 1.0 : scale[i];
      const float z = static_cast<float>((u[k] + move * direction[k]) * unit);
      query[k] = z;
      trial[k] = z / unit;
    }
  }
}
