// Rows shared by teams of threads: each team sums one row, and every thread of it gets the sum.
#pragma once

#include "common.cuh"

namespace unblemish::cuda {

constexpr int kTeam = 16;                  // threads that share a row: 64 bytes at once
constexpr int kTeams = kThreads / kTeam;   // rows at once
constexpr int kMostChannels = 2048;        // of a cell, where it is kept in shared memory

__device__ __forceinline__ int team() { return static_cast<int>(threadIdx.x) / kTeam; }
__device__ __forceinline__ int member() { return static_cast<int>(threadIdx.x) % kTeam; }

// The sum over the team in a fixed order. Every thread of the block calls it.
__device__ __forceinline__ float sum_of_team(float value) {
  __shared__ float each[kThreads];
  __syncthreads();  // the previous sums may still be read
  each[threadIdx.x] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int k = 0; k < kTeam; ++k) sum += each[team() * kTeam + k];
  return sum;
}

// This thread's part of ||a - b||^2.
__device__ __forceinline__ float part_of_distance(const float* a, const float* b, int channels) {
  float sum = 0.0f;
  for (int c = member(); c < channels; c += kTeam) sum += (a[c] - b[c]) * (a[c] - b[c]);
  return sum;
}

}  // namespace unblemish::cuda
