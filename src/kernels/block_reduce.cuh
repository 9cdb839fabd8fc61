#pragma once

namespace subspace::kernels {

// Reductions over a block of whole warps, at most 1024 threads. Every thread calls and every thread
// gets the result. `reduced` (and `where`) are 32 entries of shared memory. They synchronise the
// block before and after, so that they can be called one after another.

template <typename Combine>
__device__ double block_reduce(double value, double* reduced, double neutral, Combine combine) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffff, value, offset));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) reduced[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x % 32 < blockDim.x / 32 ? reduced[threadIdx.x % 32] : neutral;
  for (int offset = 16; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffff, value, offset));
  }
  return value;
}

__device__ inline double block_sum(double value, double* reduced) {
  return block_reduce(value, reduced, 0.0, [](double a, double b) { return a + b; });
}

/// NaN counts as larger than anything if the caller has turned it into infinity.
__device__ inline double block_max(double value, double* reduced) {
  return block_reduce(value, reduced, -INFINITY, [](double a, double b) { return fmax(a, b); });
}

/// The largest value; *at is the smallest thread index that has it.
__device__ inline double block_argmax(double value, double* reduced, int* where, int* at) {
  int index = threadIdx.x;
  auto take = [&](double other, int other_index) {
    if (other > value || (other == value && other_index < index)) {
      value = other;
      index = other_index;
    }
  };
  for (int offset = 16; offset > 0; offset /= 2) {
    take(__shfl_xor_sync(0xffffffff, value, offset), __shfl_xor_sync(0xffffffff, index, offset));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    reduced[threadIdx.x / 32] = value;
    where[threadIdx.x / 32] = index;
  }
  __syncthreads();
  const bool has = threadIdx.x % 32 < blockDim.x / 32;
  value = has ? reduced[threadIdx.x % 32] : -INFINITY;
  index = has ? where[threadIdx.x % 32] : 1 << 30;
  for (int offset = 16; offset > 0; offset /= 2) {
    take(__shfl_xor_sync(0xffffffff, value, offset), __shfl_xor_sync(0xffffffff, index, offset));
  }
  *at = index;
  return value;
}

}  // namespace subspace::kernels
