// How much the value of an item changed of late, for searches that end where it no longer does.
#include <math.h>

#include "common.cuh"

// change: the largest difference of two values that follow each other, of the last `patience` steps and `value`;
// infinity before. trace: (batch, most), steps: (batch), of the steps before, see unblemish_settle.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_recent_change(const double* __restrict__ value, const double* __restrict__ trace,
                            const int* __restrict__ steps, double* __restrict__ change, int most, int patience,
                            int batch) {
  using namespace unblemish::cuda;
  for (size_t b = first(1); b < static_cast<size_t>(batch); b += stride(1)) {
    double last = value[b], largest = steps[b] < patience ? INFINITY : 0.0;
    for (int k = 1; k <= patience && k <= steps[b]; ++k) {
      const double before = trace[b * most + steps[b] - k];
      largest = fmax(largest, fabs(last - before));
      last = before;
    }
    change[b] = largest;
  }
}
