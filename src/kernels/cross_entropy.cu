#include <cstdint>

#include "kernels/cross_entropy.h"
#include "kernels/cuda_check.cuh"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

constexpr int kKept = 8;  // vectors of a row that a thread keeps in registers

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

template <int kThreads>
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

template <Element kElement>
__device__ Softmax of_vector(const uint4& raw, int first, int columns, Softmax mine) {
  constexpr int kValues = Vector<kElement>::kValues;
  float x[kValues];
  Vector<kElement>::unpack(raw, x);
  float most = mine.most;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    if (first + i >= columns) x[i] = -INFINITY;
    most = fmaxf(most, x[i]);
  }
  if (most == -INFINITY) return mine;
  // NaN is never the largest: it comes into the sum by its own exponential.
  float sum = mine.sum * (mine.most == most ? 1.0f : __expf(mine.most - most));
#pragma unroll
  for (int i = 0; i < kValues; ++i) sum += __expf(x[i] - most);
  return {most, sum};
}

template <Element kElement>
__device__ uint4 gradient(const uint4& raw, int first, int columns, std::int64_t target,
                          float log_sum, float factor) {
  constexpr int kValues = Vector<kElement>::kValues;
  float x[kValues];
  Vector<kElement>::unpack(raw, x);
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const float p = __expf(x[i] - log_sum) - (first + i == target ? 1.0f : 0.0f);
    x[i] = first + i < columns ? factor * p : 0.0f;
  }
  return Vector<kElement>::pack(x);
}

/// A block a row. kWhole: all of the row is kept in registers between reading and writing.
template <Element kElement, bool kWhole, int kThreads>
__global__ void __launch_bounds__(kThreads) one_row(CrossEntropy p) {
  constexpr int kValues = Vector<kElement>::kValues;
  __shared__ Softmax shared[32];
  const int vectors = static_cast<int>(p.stride) / kValues;
  const int columns = static_cast<int>(p.columns);
  auto* row = static_cast<uint4*>(p.logits) + std::int64_t{blockIdx.x} * vectors;
  const std::int64_t target = p.targets[blockIdx.x];
  if (target < 0) {
    if (threadIdx.x == 0) p.loss[blockIdx.x] = 0;
    if (p.factor == nullptr) return;
    for (int at = threadIdx.x; at < vectors; at += kThreads) row[at] = uint4{};
    return;
  }
  Softmax mine = {-INFINITY, 0};
  uint4 kept[kWhole ? kKept : 1];
  if constexpr (kWhole) {
#pragma unroll
    for (int v = 0; v < kKept; ++v) {
      const int at = v * kThreads + threadIdx.x;
      kept[v] = at < vectors ? row[at] : uint4{};
    }
#pragma unroll
    for (int v = 0; v < kKept; ++v) {
      const int at = v * kThreads + threadIdx.x;
      if (at < vectors) mine = of_vector<kElement>(kept[v], at * kValues, columns, mine);
    }
  } else {
    for (int at = threadIdx.x; at < vectors; at += kThreads) {
      mine = of_vector<kElement>(row[at], at * kValues, columns, mine);
    }
  }
  mine = block_join<kThreads>(mine, shared);
  const float log_sum = mine.most + logf(mine.sum);
  if (threadIdx.x == 0) {
    float x = __int_as_float(0x7fc00000);
    if (target < columns) {
      float values[kValues];
      Vector<kElement>::unpack(row[target / kValues], values);
#pragma unroll
      for (int i = 0; i < kValues; ++i) x = target % kValues == i ? values[i] : x;
    }
    p.loss[blockIdx.x] = log_sum - x;
  }
  if (p.factor == nullptr) return;
  __syncthreads();  // the first thread has read the target's logit
  const float factor = *p.factor;
  if constexpr (kWhole) {
#pragma unroll
    for (int v = 0; v < kKept; ++v) {
      const int at = v * kThreads + threadIdx.x;
      if (at >= vectors) continue;
      row[at] = gradient<kElement>(kept[v], at * kValues, columns, target, log_sum, factor);
    }
  } else {
    for (int at = threadIdx.x; at < vectors; at += kThreads) {
      row[at] = gradient<kElement>(row[at], at * kValues, columns, target, log_sum, factor);
    }
  }
}

template <Element kElement>
void launch(const CrossEntropy& p, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(p.rows);
  const std::int64_t vectors = p.stride / Vector<kElement>::kValues;
  if (vectors <= kKept * 256) {
    one_row<kElement, true, 256><<<blocks, 256, 0, stream>>>(p);
  } else if (vectors <= kKept * 512) {
    one_row<kElement, true, 512><<<blocks, 512, 0, stream>>>(p);
  } else if (vectors <= kKept * 1024) {
    one_row<kElement, true, 1024><<<blocks, 1024, 0, stream>>>(p);
  } else {
    one_row<kElement, false, 1024><<<blocks, 1024, 0, stream>>>(p);
  }
}

}  // namespace

void cross_entropy_cuda(const CrossEntropy& p, Stream stream) {
  if (p.rows == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  p.element == Element::f32 ? launch<Element::f32>(p, queue) : launch<Element::bf16>(p, queue);
  check_cuda(cudaGetLastError(), "cross_entropy");
}

}  // namespace subspace::kernels
