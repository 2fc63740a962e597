// What every kernel body needs to be compiled for the host and for CUDA. No framework headers.
#pragma once

#include <math.h>

#if defined(__CUDACC__)
#define UNBLEMISH_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define UNBLEMISH_HD inline __attribute__((always_inline))
#else
#define UNBLEMISH_HD inline
#endif

// One namespace per instruction set the bodies are compiled for; see cpu/CMakeLists.txt.
#ifndef UNBLEMISH_ISA
#define UNBLEMISH_ISA generic
#endif

#if defined(__GNUC__) || defined(__CUDACC__)
#define UNBLEMISH_RESTRICT __restrict__
#else
#define UNBLEMISH_RESTRICT __restrict
#endif
