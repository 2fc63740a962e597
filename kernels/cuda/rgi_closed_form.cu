// RGI objective minimised over the mask; see include/unblemish/rgi_closed_form.hpp.
#include "common.cuh"
#include "unblemish/rgi_closed_form.hpp"

namespace unblemish::cuda {

struct ClosedForm {
  const float* x;
  const float* g;
  float lam;
  float scale;
  float* mask;
  float* cotangent;
};

// Channels > 0: residuals stay in registers. Channels = 0: any number, x and g are read a second time.
template <int Channels, int Width>
__device__ double closed_form(const ClosedForm a, int channels, size_t plane) {
  const int count = Channels > 0 ? Channels : channels;
  const float twice_scale = 2.0f * a.scale;
  double sum = 0.0;
  for (size_t i = first(Width); i < plane; i += stride(Width)) {
    Lanes<Width> r[Channels > 0 ? Channels : 1];
    Lanes<Width> r2{};
    float poison = 0.0f;
#pragma unroll
    for (int c = 0; c < count; ++c) {
      const Lanes<Width> x = load<Width>(a.x + c * plane + i);
      const Lanes<Width> g = load<Width>(a.g + c * plane + i);
      Lanes<Width>& kept = r[Channels > 0 ? c : 0];
#pragma unroll
      for (int k = 0; k < Width; ++k) {
        kept.v[k] = g.v[k] - x.v[k];
        r2.v[k] += kept.v[k] * kept.v[k];
        poison += rgi_poison(kept.v[k]);
      }
    }
    Lanes<Width> keep;
    Lanes<Width> mask;
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      keep.v[k] = rgi_keep(r2.v[k], a.lam);
      mask.v[k] = 1.0f - keep.v[k];
      sum += rgi_profile_loss(r2.v[k], keep.v[k], a.lam);
    }
    sum += poison;
    store<Width>(a.mask + i, mask);
#pragma unroll
    for (int c = 0; c < count; ++c) {
      if constexpr (Channels == 0) {
        const Lanes<Width> x = load<Width>(a.x + c * plane + i);
        const Lanes<Width> g = load<Width>(a.g + c * plane + i);
#pragma unroll
        for (int k = 0; k < Width; ++k) r[0].v[k] = g.v[k] - x.v[k];
      }
      Lanes<Width> cotangent;
#pragma unroll
      for (int k = 0; k < Width; ++k)
        cotangent.v[k] = rgi_cotangent(r[Channels > 0 ? c : 0].v[k], keep.v[k], twice_scale);
      store<Width>(a.cotangent + c * plane + i, cotangent);
    }
  }
  return sum;
}

}  // namespace unblemish::cuda

// mask: (batch, 1, plane). With a mask of its own, every element is a one-channel pixel: channels = 1,
// plane = C H W. partial: batch x gridDim.x; unblemish_finish_sum makes the objective of it.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 3)
    unblemish_rgi_closed_form(const float* __restrict__ x, const float* __restrict__ g,
                              const float* __restrict__ lam, const float* __restrict__ scale,
                              float* __restrict__ mask, float* __restrict__ cotangent,
                              double* __restrict__ partial, int batch, int channels, size_t plane) {
  using namespace unblemish::cuda;
  const bool wide = plane % 4 == 0 && aligned(x, g, mask, cotangent);
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y) {
    const size_t image = b * channels * plane;
    const ClosedForm item{x + image, g + image, lam[b], scale[b], mask + b * plane, cotangent + image};
    write_partial(partial, b, with_channels(channels, [&](auto known) {
                    constexpr int count = decltype(known)::value;
                    return wide ? closed_form<count, 4>(item, channels, plane)
                                : closed_form<count, 1>(item, channels, plane);
                  }));
  }
}
