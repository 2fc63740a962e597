// Runs CUDA drivers on the host: one thread per lane, __syncthreads as a barrier, blocks one after
// another. Slow, and blind to what only hardware shows (occupancy, memory order between blocks); it
// checks index arithmetic, alignment paths, reductions and the launch contract of common.cuh.
//
// A source includes this, then the drivers, and ends with EXPORT(kernel) for each.
#pragma once

#include <barrier>
#include <cmath>
#include <cstddef>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(n)

struct Dim {
  unsigned x, y, z;
};
struct float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static Dim gridDim, blockDim;
static thread_local Dim blockIdx, threadIdx;
static std::barrier<>* block_barrier;
inline void __syncthreads() { block_barrier->arrive_and_wait(); }

#include "common.cuh"

template <auto Kernel>
struct Launch;

template <class... A, void (*Kernel)(A...)>
struct Launch<Kernel> {
  static void run(unsigned grid_x, unsigned grid_y, A... arguments) {
    gridDim = {grid_x, grid_y, 1};
    blockDim = {unblemish::cuda::kThreads, 1, 1};
    std::barrier<> barrier(unblemish::cuda::kThreads);
    block_barrier = &barrier;
    std::vector<std::thread> lanes;
    for (unsigned lane = 0; lane < blockDim.x; ++lane)
      lanes.emplace_back([&, lane] {
        threadIdx = {lane, 0, 0};
        for (unsigned y = 0; y < grid_y; ++y)
          for (unsigned x = 0; x < grid_x; ++x) {
            blockIdx = {x, y, 0};
            Kernel(arguments...);
            __syncthreads();
          }
      });
    for (std::thread& lane : lanes) lane.join();
  }
};

#define EXPORT(kernel) \
  extern "C" void* const launch_##kernel = reinterpret_cast<void*>(&Launch<unblemish_##kernel>::run)
