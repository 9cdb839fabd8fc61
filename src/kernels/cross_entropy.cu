#include <cuda_pipeline.h>

#include <cstdint>

#include "kernels/cross_entropy.h"
#include "kernels/cuda_check.cuh"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

constexpr int kThreads = 512;
constexpr int kParts = 4;  // of a row, each waited for by itself
constexpr float kLog2e = 1.4426950408889634f;

/// 2^x within two units in the last place; below 2^-126 it is zero.
__device__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Largest logit so far and the sum of exponentials relative to it.
struct Softmax {
  float most, sum;
};

__device__ Softmax join(const Softmax& a, const Softmax& b) {
  const float most = fmaxf(a.most, b.most);
  // Where both are minus infinity nothing has been seen yet, and their difference would be NaN.
  const float from_a = a.most == most ? 1.0f : __expf(a.most - most);
  const float from_b = b.most == most ? 1.0f : __expf(b.most - most);
  return {most, a.sum * from_a + b.sum * from_b};
}

__device__ Softmax block_join(Softmax mine, Softmax* shared) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    mine = join(mine, {__shfl_xor_sync(kWholeWarp, mine.most, offset),
                       __shfl_xor_sync(kWholeWarp, mine.sum, offset)});
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = threadIdx.x % 32 < kThreads / 32 ? shared[threadIdx.x % 32] : Softmax{-INFINITY, 0};
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    mine = join(mine, {__shfl_xor_sync(kWholeWarp, mine.most, offset),
                       __shfl_xor_sync(kWholeWarp, mine.sum, offset)});
  }
  return mine;
}

/// One more vector, of which the first `counting` values are classes.
template <Element kElement>
__device__ Softmax of_vector(const uint4& raw, int counting, Softmax mine) {
  constexpr int kValues = Vector<kElement>::kValues;
  float x[kValues];
  Vector<kElement>::unpack(raw, x);
  if (counting < kValues) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) x[i] = i < counting ? x[i] : -INFINITY;
  }
  float most = mine.most;
#pragma unroll
  for (int i = 0; i < kValues; ++i) most = fmaxf(most, x[i]);
  // NaN is never the largest: it comes into the sum by its own exponential.
  if (most == -INFINITY) return mine;
  float sum = mine.most == most ? mine.sum : mine.sum * power_of_two((mine.most - most) * kLog2e);
#pragma unroll
  for (int i = 0; i < kValues; ++i) sum += power_of_two((x[i] - most) * kLog2e);
  return {most, sum};
}

/// The gradient of a vector whose value number `target` is the row's target (outside: none).
template <Element kElement>
__device__ uint4 gradient(const uint4& raw, int counting, std::int64_t target, float log_sum,
                          float factor) {
  constexpr int kValues = Vector<kElement>::kValues;
  float x[kValues];
  Vector<kElement>::unpack(raw, x);
#pragma unroll
  for (int i = 0; i < kValues; ++i) x[i] = factor * power_of_two((x[i] - log_sum) * kLog2e);
  if (target >= 0 && target < kValues) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) x[i] -= i == target ? factor : 0.0f;
  }
  if (counting < kValues) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) x[i] = i < counting ? x[i] : 0.0f;
  }
  return Vector<kElement>::pack(x);
}

/// A row without a target: no loss, and zeros for a gradient.
__device__ void no_target(const CrossEntropy& p, uint4* row, int vectors) {
  if (threadIdx.x == 0) p.loss[blockIdx.x] = 0;
  if (p.factor == nullptr) return;
  for (int at = threadIdx.x; at < vectors; at += kThreads) row[at] = uint4{};
}

template <Element kElement>
__device__ float logit(const uint4* row, std::int64_t target, int columns) {
  constexpr int kValues = Vector<kElement>::kValues;
  float x = __int_as_float(0x7fc00000);
  if (target >= columns) return x;
  float values[kValues];
  Vector<kElement>::unpack(row[target / kValues], values);
#pragma unroll
  for (int i = 0; i < kValues; ++i) x = target % kValues == i ? values[i] : x;
  return x;
}

/// A block a row. kKept: the row waits in shared memory, each thread's vectors copied by itself,
/// between reading and writing.
template <Element kElement, bool kKept>
__global__ void __launch_bounds__(kThreads, 2) one_row(CrossEntropy p) {
  constexpr int kValues = Vector<kElement>::kValues;
  __shared__ Softmax shared[32];
  extern __shared__ uint4 kept[];
  const int vectors = static_cast<int>(p.stride) / kValues, columns = static_cast<int>(p.columns);
  uint4* row = static_cast<uint4*>(p.logits) + std::int64_t{blockIdx.x} * vectors;
  const std::int64_t target = p.targets[blockIdx.x];
  if (target < 0) return no_target(p, row, vectors);
  const uint4* from = kKept ? kept : row;
  const int part = (vectors + kParts * kThreads - 1) / (kParts * kThreads) * kThreads;
  if constexpr (kKept) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int end = min(vectors, (i + 1) * part);
      for (int at = i * part + threadIdx.x; at < end; at += kThreads) {
        __pipeline_memcpy_async(kept + at, row + at, sizeof(uint4));
      }
      __pipeline_commit();
    }
  }
  Softmax mine = {-INFINITY, 0};
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    if constexpr (kKept) __pipeline_wait_prior(kParts - 1 - i);
    const int end = min(vectors, (i + 1) * part);
    for (int at = i * part + threadIdx.x; at < end; at += kThreads) {
      mine = of_vector<kElement>(from[at], columns - at * kValues, mine);
    }
  }
  mine = block_join(mine, shared);
  const float log_sum = mine.most + logf(mine.sum);
  if (threadIdx.x == 0) {
    p.loss[blockIdx.x] = log_sum - logit<kElement>(from, target, columns);
  }
  if (p.factor == nullptr) return;
  if constexpr (!kKept) __syncthreads();  // the first thread has read the target's logit
  const float factor = *p.factor;
#pragma unroll 2
  for (int at = threadIdx.x; at < vectors; at += kThreads) {
    row[at] = gradient<kElement>(from[at], columns - at * kValues, target - at * kValues, log_sum,
                                 factor);
  }
}

template <Element kElement, bool kKept>
void launch(const CrossEntropy& p, std::int64_t bytes, cudaStream_t stream) {
  const auto kernel = one_row<kElement, kKept>;
  const int shared = kKept ? static_cast<int>(bytes) : 0;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
             "cross_entropy");
  kernel<<<static_cast<unsigned>(p.rows), kThreads, shared, stream>>>(p);
}

template <Element kElement>
void choose(const CrossEntropy& p, cudaStream_t stream) {
  int device = 0, most = 0;
  check_cuda(cudaGetDevice(&device), "cross_entropy");
  check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "cross_entropy");
  const std::int64_t bytes = p.stride * (16 / Vector<kElement>::kValues);
  if (bytes + 1024 <= most) {
    launch<kElement, true>(p, bytes, stream);
  } else {
    launch<kElement, false>(p, bytes, stream);
  }
}

}  // namespace

void cross_entropy_cuda(const CrossEntropy& p, Stream stream) {
  if (p.rows == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  p.element == Element::f32 ? choose<Element::f32>(p, queue) : choose<Element::bf16>(p, queue);
  check_cuda(cudaGetLastError(), "cross_entropy");
}

}  // namespace subspace::kernels
