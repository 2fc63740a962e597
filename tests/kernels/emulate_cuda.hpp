// Runs CUDA drivers on the host: lanes are coroutines, taken up in turn between one __syncthreads and the next;
// blocks run one after another. Blind to what only hardware shows (occupancy, memory order between blocks); it
// checks index arithmetic, alignment paths, reductions, the packing of arguments and the launch contract of
// common.cuh. A lane that would leave the others waiting is an error. Run the lanes forwards and backwards
// (`emulation_order`): where the bits differ, a __syncthreads is missing.
//
// A source includes this, then the drivers, and ends with EXPORT(kernel) for each.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct Dim {
  unsigned x, y, z;
};
struct float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static Dim gridDim, blockDim, blockIdx, threadIdx;
extern "C" {
int emulation_order = 0;  // 1: the last lane first
}

struct Lane {
  ucontext_t begin;
  jmp_buf here;
  bool begun, done;
};

constexpr std::size_t kStack = 1 << 16;
static jmp_buf scheduler;
static ucontext_t home;
static Lane* current;
static std::function<void()> body;

// To the scheduler, and back when it is this lane's turn again. The idiom of coroutine libraries: a context for
// the first entry, _setjmp and _longjmp (which leave the signal mask alone) for every other switch.
inline void __syncthreads() {
  if (_setjmp(current->here) == 0) _longjmp(scheduler, 1);
}

static void begin_lane() {
  body();
  current->done = true;
  _longjmp(scheduler, 1);
}

__attribute__((noinline)) static void resume(Lane* lane, unsigned index) {
  if (_setjmp(scheduler) != 0) return;
  current = lane;
  threadIdx = {index, 0, 0};
  if (lane->begun) _longjmp(lane->here, 1);
  lane->begun = true;
  setcontext(&lane->begin);
}

#include "common.cuh"

enum Outcome { kDone = 0, kDiverged = 1, kMispacked = 2 };

static Outcome run_block(Lane* lanes, char* stacks) {
  constexpr unsigned count = unblemish::cuda::kThreads;
  for (unsigned i = 0; i < count; ++i) {
    lanes[i].begun = lanes[i].done = false;
    getcontext(&lanes[i].begin);
    lanes[i].begin.uc_stack.ss_sp = stacks + i * kStack;
    lanes[i].begin.uc_stack.ss_size = kStack;
    lanes[i].begin.uc_link = &home;
    makecontext(&lanes[i].begin, begin_lane, 0);
  }
  for (unsigned ended = 0; ended == 0;) {
    for (unsigned k = 0; k < count; ++k) {
      const unsigned i = emulation_order == 0 ? k : count - 1 - k;
      resume(&lanes[i], i);
    }
    for (unsigned i = 0; i < count; ++i) ended += lanes[i].done;
    if (ended != 0 && ended != count) return kDiverged;
  }
  return kDone;
}

// Where cuLaunchKernel finds the next argument: at its natural alignment.
template <class T>
T take(const unsigned char* packed, std::size_t& at) {
  at = (at + alignof(T) - 1) / alignof(T) * alignof(T);
  T value;
  std::memcpy(&value, packed + at, sizeof(T));
  at += sizeof(T);
  return value;
}

template <auto Kernel>
struct Launch;

template <class... A, void (*Kernel)(A...)>
struct Launch<Kernel> {
  static int run(unsigned grid_x, unsigned grid_y, const unsigned char* packed, std::size_t size) {
    std::size_t at = 0;
    std::unique_ptr<unsigned char[]> room(new unsigned char[size + 256]());
    std::memcpy(room.get(), packed, size);
    const std::tuple<A...> arguments{take<A>(room.get(), at)...};
    if (at != size) return kMispacked;
    static std::unique_ptr<Lane[]> lanes(new Lane[unblemish::cuda::kThreads]);
    static std::unique_ptr<char[]> stacks(new char[unblemish::cuda::kThreads * kStack]);
    gridDim = {grid_x, grid_y, 1};
    blockDim = {unblemish::cuda::kThreads, 1, 1};
    body = [&] { std::apply(Kernel, arguments); };
    for (unsigned y = 0; y < grid_y; ++y)
      for (unsigned x = 0; x < grid_x; ++x) {
        blockIdx = {x, y, 0};
        if (const Outcome outcome = run_block(lanes.get(), stacks.get()); outcome != kDone) return outcome;
      }
    return kDone;
  }
};

#define EXPORT(kernel) \
  extern "C" void* const launch_##kernel = reinterpret_cast<void*>(&Launch<unblemish_##kernel>::run)
