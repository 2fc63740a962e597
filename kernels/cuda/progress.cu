// What a search on the device keeps about its items, so that the host need not look at every step.
#include <math.h>

#include "common.cuh"

namespace unblemish::cuda {

enum Ended { kRunning = 0, kMaxSteps = 1, kConverged = 2, kNonFinite = 3 };

// Whether the best value fell by no more than a share of itself over the last `patience` steps.
__device__ inline bool is_flat(const double* best_by_step, int step, double tolerance, int patience, double floor) {
  if (tolerance <= 0.0 || step < patience || !isfinite(best_by_step[step])) return false;
  const double size = fmax(fabs(best_by_step[step]), floor);
  return best_by_step[step - patience] - best_by_step[step] <= tolerance * size;
}

}  // namespace unblemish::cuda

// The end of an evaluation: a thread for each item. value = objective + extra; an item that has ended stays as it
// is, and its rate becomes 0, with which unblemish_energy_step leaves it where it is.
//
// extra, change, guard, rate, at: nullptr where there is none. change: an item has arrived where it is <= least.
// guard: an item has failed where it is not finite. trace, best_by_step: (batch, most). best: infinity before the
// first step. better: 1 where this value is the best. at: one int, -1 before the first step, then the index of the
// step. gridDim = (blocks, 1).
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_settle(const double* __restrict__ objective, const double* __restrict__ extra,
                     const double* __restrict__ change, const double* __restrict__ guard, double least,
                     double tolerance, int patience, double floor, int most, double* __restrict__ trace,
                     double* __restrict__ best_by_step, double* __restrict__ best, int* __restrict__ better,
                     int* __restrict__ ended, int* __restrict__ steps, float* __restrict__ rate,
                     int* __restrict__ at, int batch) {
  using namespace unblemish::cuda;
  if (at != nullptr && first(1) == 0) at[0] = at[0] + 1;
  for (size_t b = first(1); b < static_cast<size_t>(batch); b += stride(1)) {
    better[b] = 0;
    if (ended[b] != kRunning) continue;
    const double sum = objective[b] + (extra == nullptr ? 0.0 : extra[b]);
    const bool finite = isfinite(sum) && (guard == nullptr || isfinite(guard[b]));
    const double value = finite ? sum : static_cast<double>(INFINITY);
    const int step = steps[b];
    steps[b] = step + 1;
    trace[b * most + step] = value;
    if (value < best[b]) {
      best[b] = value;
      better[b] = 1;
    }
    best_by_step[b * most + step] = best[b];
    const bool arrived = change != nullptr && change[b] <= least;
    if (!finite)
      ended[b] = kNonFinite;
    else if (arrived || is_flat(best_by_step + b * most, step, tolerance, patience, floor))
      ended[b] = kConverged;
    else if (step + 1 >= most)
      ended[b] = kMaxSteps;
    if (ended[b] != kRunning && rate != nullptr) rate[b] = 0.0f;
  }
}

// As unblemish_settle, of a search in stages: an item whose stage is flat goes on to the next, with lam = target times
// the rung of that stage, and has its point looked at again.
//
// value: what unblemish_lbfgs_step has seen; moved, stuck, fresh: its. plan: the number of stages, and the steps
// before which no stage is flat, while starts race. interim: how much less fine stages before the last need be.
// window: (batch, most), the best of the stage by step taken, `taken` of them. opening: best of the first stage.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_settle_stages(const double* __restrict__ value, const int* __restrict__ moved, int* __restrict__ stuck,
                            int* __restrict__ fresh, const int* __restrict__ plan, const float* __restrict__ rungs,
                            const float* __restrict__ target, double tolerance, double interim, int patience,
                            const double* __restrict__ floor, int most, double* __restrict__ trace,
                            double* __restrict__ window, double* __restrict__ best, double* __restrict__ opening,
                            float* __restrict__ lam, int* __restrict__ stage, int* __restrict__ taken,
                            int* __restrict__ better, int* __restrict__ ended, int* __restrict__ steps, int batch) {
  using namespace unblemish::cuda;
  for (size_t b = first(1); b < static_cast<size_t>(batch); b += stride(1)) {
    better[b] = 0;
    if (ended[b] != kRunning) continue;
    const int step = ++steps[b];
    trace[b * most + step - 1] = value[b];
    if (stage[b] == 0) opening[b] = fmin(opening[b], value[b]);
    if (value[b] < best[b]) {
      best[b] = value[b];
      better[b] = 1;
    }
    if (moved[b] != 0) window[b * most + taken[b]++] = best[b];
    const bool last = stage[b] >= plan[0] - 1;
    const double fine = last ? tolerance : interim * tolerance;
    const bool flat = step >= plan[1] && taken[b] > 0 &&
                      is_flat(window + b * most, taken[b] - 1, fine, patience, floor[b]);
    const bool over = stuck[b] != 0 || flat;
    if (stuck[b] != 0 && !isfinite(value[b])) {
      ended[b] = kNonFinite;
    } else if (over && last) {
      ended[b] = kConverged;
    } else if (step >= most) {
      ended[b] = kMaxSteps;
    } else if (over) {
      stage[b] += 1;
      lam[b] = target[b] * rungs[stage[b]];
      best[b] = static_cast<double>(INFINITY);
      taken[b] = 0;
      fresh[b] = 1;
      stuck[b] = 0;
    }
  }
}

namespace unblemish::cuda {

template <int Width>
__device__ void copy_row(const float* from, float* to, size_t length) {
  for (size_t i = first(Width); i < length; i += stride(Width)) store<Width>(to + i, load<Width>(from + i));
}

}  // namespace unblemish::cuda

// Copy the rows of x whose `chosen` is not 0 over those of `kept`.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_keep_rows(const float* __restrict__ x, const int* __restrict__ chosen, float* __restrict__ kept,
                        int batch, size_t length) {
  using namespace unblemish::cuda;
  const bool wide = length % 4 == 0 && aligned(x, kept);
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    if (chosen[b] == 0) continue;
    if (wide)
      copy_row<4>(x + b * length, kept + b * length, length);
    else
      copy_row<1>(x + b * length, kept + b * length, length);
  }
}
