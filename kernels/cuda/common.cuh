// Shared by the CUDA drivers: grid-stride loops, 16-byte access, sums that repeat.
//
// These kernels compile for every listed architecture (compile_check.sh); they have NOT YET RUN on
// hardware. They are plain extern "C" entry points of a fat binary, to be loaded by the driver API.
//
// Launch: blockDim = (kThreads, 1, 1); gridDim = (blocks per item, min(batch, 65535), 1), unless a driver says
// otherwise, as those of features' distances do, in which a cell or query is one block's. Every reduction
// takes two steps: a kernel writes one double per block and item to `partial` (batch x gridDim.x), and
// unblemish_finish_sum adds them in a fixed order. No atomics: the same grid gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace unblemish::cuda {

using std::size_t;

constexpr int kThreads = 256;  // a power of two: the tree reductions halve it

template <int Width>
struct Lanes {
  float v[Width];
};

template <int Width>
__device__ __forceinline__ Lanes<Width> load(const float* p) {
  if constexpr (Width == 4) {
    const float4 t = *reinterpret_cast<const float4*>(p);
    return {{t.x, t.y, t.z, t.w}};
  } else {
    return {{*p}};
  }
}

template <int Width>
__device__ __forceinline__ void store(float* p, const Lanes<Width>& a) {
  if constexpr (Width == 4) {
    *reinterpret_cast<float4*>(p) = make_float4(a.v[0], a.v[1], a.v[2], a.v[3]);
  } else {
    *p = a.v[0];
  }
}

__device__ __forceinline__ bool aligned() { return true; }

// Whether every pointer may be read 16 bytes at a time; nullptr may.
template <class... Rest>
__device__ __forceinline__ bool aligned(const float* p, Rest... rest) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0 && aligned(rest...);
}

// First element of this thread and the stride of the grid, for `width` elements at once.
__device__ __forceinline__ size_t first(int width) {
  return (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * width;
}

__device__ __forceinline__ size_t stride(int width) { return static_cast<size_t>(gridDim.x) * blockDim.x * width; }

template <int Channels>
struct Known {
  static constexpr int value = Channels;
};

// work(Known<1>) of grey images, work(Known<3>) of colour ones, whose channels then stay in registers; work(Known<0>)
// of any other number.
template <class Work>
__device__ __forceinline__ auto with_channels(int channels, const Work& work) {
  if (channels == 1) return work(Known<1>{});
  if (channels == 3) return work(Known<3>{});
  return work(Known<0>{});
}

struct Add {
  __device__ static double apply(double a, double b) { return a + b; }
};

// Magnitudes are never negative, so 0 is the neutral element; NaN is passed over, as in norms.hpp.
struct Max {
  __device__ static double apply(double a, double b) { return b > a ? b : a; }
};

// Reduce one value of each thread by a tree; the result is valid in thread 0.
template <class Op>
__device__ double reduce_block(double value) {
  __shared__ double tree[kThreads];
  __syncthreads();  // the previous reduction may still be read
  tree[threadIdx.x] = value;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half)
      tree[threadIdx.x] = Op::apply(tree[threadIdx.x], tree[threadIdx.x + half]);
  }
  return tree[threadIdx.x];
}

// Store what this block found for `item`.
template <class Op = Add>
__device__ void write_partial(double* partial, size_t item, double value) {
  const double total = reduce_block<Op>(value);
  if (threadIdx.x == 0) partial[item * gridDim.x + blockIdx.x] = total;
}

}  // namespace unblemish::cuda
