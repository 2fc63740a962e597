// One step of energy projection; see include/unblemish/energy_step.hpp.
#include "common.cuh"
#include "unblemish/energy_step.hpp"
#include "unblemish/norms.hpp"

namespace unblemish::cuda {

// A plane of an item; pointers may be nullptr as in `EnergyTerms.energy_step`.
struct Energy {
  float* x;
  const float* start;
  const float* pulled;
  const float* direct;
  const float* mask;
  const float* restored;
  float* first;
  float* second;
  float direct_factor;
  bool weigh_step;
  bool proximal;
};

struct EnergySums {
  double distance, squared;
  float largest;
};

template <class T>
__device__ __forceinline__ T* moved(T* p, size_t count) {
  return p == nullptr ? nullptr : p + count;
}

template <int Width>
__device__ __forceinline__ Lanes<Width> filled(float value) {
  Lanes<Width> out;
#pragma unroll
  for (int k = 0; k < Width; ++k) out.v[k] = value;
  return out;
}

template <int Width>
__device__ __forceinline__ Lanes<Width> load_or(const float* p, size_t i, float value) {
  return p == nullptr ? filled<Width>(value) : load<Width>(p + i);
}

template <int Width>
__device__ void energy(const Energy a, const EnergyStep& step, size_t plane, EnergySums& sums) {
  for (size_t i = cuda::first(Width); i < plane; i += stride(Width)) {
    Lanes<Width> x = load<Width>(a.x + i);
    const Lanes<Width> start = load<Width>(a.start + i), pulled = load<Width>(a.pulled + i);
    const Lanes<Width> direct = load_or<Width>(a.direct, i, 0.0f), mask = load_or<Width>(a.mask, i, 1.0f);
    Lanes<Width> m = load_or<Width>(a.first, i, 0.0f), v = load_or<Width>(a.second, i, 0.0f);
    const Lanes<Width> restored = load_or<Width>(a.restored, i, 0.0f);
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      const float here = x.v[k], r = here - restored.v[k];
      const float weight = a.restored == nullptr ? mask.v[k] : mask.v[k] * (r * r);
      const float smooth = pulled.v[k] + a.direct_factor * direct.v[k];
      const float slope = energy_slope(smooth, here, start.v[k], step.lam, a.proximal);
      const EnergyMove move = a.first == nullptr ? energy_plain(slope, weight, step)
                                                 : energy_adam(m.v[k], v.v[k], slope, weight, step, a.weigh_step);
      x.v[k] = energy_place(here, start.v[k], move, step, a.proximal);
      sums.distance += magnitude(here - start.v[k]);
      sums.squared += square(x.v[k] - here);
      sums.largest = larger(sums.largest, magnitude(x.v[k] - here));
    }
    store<Width>(a.x + i, x);
    if (a.first == nullptr) continue;
    store<Width>(a.first + i, m);
    store<Width>(a.second + i, v);
  }
}

// A launch: pointers are to the first item.
struct EnergyBatch {
  Energy all;
  const float* lam;
  const float* rate;
  int mask_channels;
  double* distance;
  double* squared;
  double* largest;
  int batch, channels;
  size_t plane;
};

__device__ void energy_of_batch(const EnergyBatch& a, const AdamStep& adam) {
  const Energy& all = a.all;
  const size_t plane = a.plane;
  const bool wide = plane % 4 == 0 && aligned(all.x, all.start, all.pulled, all.direct, all.mask, all.restored,
                                              all.first, all.second);
  for (size_t b = blockIdx.y; b < static_cast<size_t>(a.batch); b += gridDim.y) {
    const EnergyStep step{a.lam[b], a.rate[b], adam};
    EnergySums sums{0.0, 0.0, 0.0f};
    for (int c = 0; c < a.channels; ++c) {
      const size_t i = (b * a.channels + c) * plane, at = a.mask_channels == 1 ? b * plane : i;
      const Energy part{all.x + i,           all.start + i,          all.pulled + i,      moved(all.direct, i),
                        moved(all.mask, at), moved(all.restored, i), moved(all.first, i), moved(all.second, i),
                        all.direct_factor,   all.weigh_step,         all.proximal};
      if (wide)
        energy<4>(part, step, plane, sums);
      else
        energy<1>(part, step, plane, sums);
    }
    write_partial(a.distance, b, sums.distance);
    write_partial(a.squared, b, sums.squared);
    write_partial<Max>(a.largest, b, sums.largest);
  }
}

}  // namespace unblemish::cuda

// lam, rate: (batch). adam: eight floats made on the host by unblemish::adam_step for a rate of 1.
// mask_channels: 1 or channels. flags: 1 for weigh_step, 2 for proximal. distance, squared, largest: partial
// results; unblemish_finish_sum, with lam, and unblemish_finish_norms end them.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_energy_step(float* __restrict__ x, const float* __restrict__ start, const float* __restrict__ pulled,
                          const float* __restrict__ direct, const float* __restrict__ mask,
                          const float* __restrict__ restored, float* __restrict__ first, float* __restrict__ second,
                          const float* __restrict__ lam, const float* __restrict__ rate, unblemish::AdamStep adam,
                          float direct_factor, int flags, int mask_channels, double* __restrict__ distance,
                          double* __restrict__ squared, double* __restrict__ largest, int batch, int channels,
                          size_t plane) {
  using namespace unblemish::cuda;
  energy_of_batch({{x, start, pulled, direct, mask, restored, first, second, direct_factor, (flags & 1) != 0,
                    (flags & 2) != 0},
                   lam, rate, mask_channels, distance, squared, largest, batch, channels, plane},
                  adam);
}

// As unblemish_energy_step, with the constants steps[at[0] + 1]: the step behind the one settled last.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads)
    unblemish_energy_step_scheduled(float* __restrict__ x, const float* __restrict__ start,
                                    const float* __restrict__ pulled, const float* __restrict__ direct,
                                    const float* __restrict__ mask, const float* __restrict__ restored,
                                    float* __restrict__ first, float* __restrict__ second,
                                    const float* __restrict__ lam, const float* __restrict__ rate,
                                    const unblemish::AdamStep* __restrict__ steps, const int* __restrict__ at,
                                    float direct_factor, int flags, int mask_channels,
                                    double* __restrict__ distance, double* __restrict__ squared,
                                    double* __restrict__ largest, int batch, int channels, size_t plane) {
  using namespace unblemish::cuda;
  energy_of_batch({{x, start, pulled, direct, mask, restored, first, second, direct_factor, (flags & 1) != 0,
                    (flags & 2) != 0},
                   lam, rate, mask_channels, distance, squared, largest, batch, channels, plane},
                  steps[at[0] + 1]);
}
