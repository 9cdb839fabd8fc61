#include <algorithm>
#include <cstdint>

#include "kernels/cuda_check.cuh"
#include "kernels/expert_table.h"
#include "kernels/gelu.h"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

constexpr int kThreads = 256;

template <Element kElement>
__device__ float value_at(const void* values, std::int64_t i) {
  if constexpr (kElement == Element::f32) return static_cast<const float*>(values)[i];
  return __uint_as_float(unsigned{static_cast<const unsigned short*>(values)[i]} << 16);
}
template <Element kElement>
__device__ void put(void* values, std::int64_t i, float value) {
  if constexpr (kElement == Element::f32) {
    static_cast<float*>(values)[i] = value;
  } else {
    static_cast<__nv_bfloat16*>(values)[i] = __float2bfloat16_rn(value);
  }
}

/// Two vectors a thread in flight, or single values where the pointers are not aligned for that.
template <Element kElement, bool kBackward>
__global__ void __launch_bounds__(kThreads) gelu(ExpertGelu p, std::int64_t vectors) {
  using Type = Vector<kElement>;
  const std::int64_t first = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * 2;
  uint4 pre[2], grad[2] = {};
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    if (first + v >= vectors) break;
    pre[v] = static_cast<const uint4*>(p.pre)[first + v];
    if (kBackward) grad[v] = static_cast<const uint4*>(p.grad)[first + v];
  }
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    if (first + v >= vectors) break;
    float x[Type::kValues], g[Type::kValues];
    Type::unpack(pre[v], x);
    if (kBackward) Type::unpack(grad[v], g);
#pragma unroll
    for (int i = 0; i < Type::kValues; ++i) {
      const Gelu<float> both = gelu_fast(x[i]);
      x[i] = kBackward ? g[i] * both.slope : both.value;
    }
    static_cast<uint4*>(p.out)[first + v] = Type::pack(x);
  }
  // What no vector holds, at the end or all of it.
  const std::int64_t rest = vectors * Type::kValues + first / 2;
  for (std::int64_t i = rest; i < p.count; i += std::int64_t{gridDim.x} * kThreads) {
    const Gelu<float> both = gelu_fast(value_at<kElement>(p.pre, i));
    put<kElement>(p.out, i, kBackward ? value_at<kElement>(p.grad, i) * both.slope : both.value);
  }
}

template <Element kElement>
void launch_gelu(const ExpertGelu& p, cudaStream_t stream) {
  const auto address = reinterpret_cast<std::uintptr_t>(p.pre) |
                       reinterpret_cast<std::uintptr_t>(p.grad) |
                       reinterpret_cast<std::uintptr_t>(p.out);
  const std::int64_t vectors = address % 16 == 0 ? p.count / Vector<kElement>::kValues : 0;
  const std::int64_t work = std::max<std::int64_t>((vectors + 1) / 2, vectors == 0 ? p.count : 1);
  const auto blocks =
      static_cast<unsigned>(std::min<std::int64_t>((work + kThreads - 1) / kThreads, 0x7fffffff));
  if (p.grad == nullptr) {
    gelu<kElement, false><<<blocks, kThreads, 0, stream>>>(p, vectors);
  } else {
    gelu<kElement, true><<<blocks, kThreads, 0, stream>>>(p, vectors);
  }
}

/// Words of 16, 4 or 2 bytes, whatever divides the rows.
template <typename Word>
__global__ void __launch_bounds__(kThreads) gather(GatherRows p, std::int64_t words) {
  for (std::int64_t at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; at < p.count * words;
       at += std::int64_t{gridDim.x} * kThreads) {
    const std::int64_t place = at / words, row = p.index[place];
    const bool valid = row >= 0 && row < p.count_rows;
    if (p.places != nullptr && at % words == 0) p.places[place] = valid ? place : -1;
    static_cast<Word*>(p.out)[at] =
        valid ? static_cast<const Word*>(p.rows)[row * words + at % words] : Word{};
  }
}

template <typename Word>
void launch_gather(const GatherRows& p, std::int64_t bytes, cudaStream_t stream) {
  const std::int64_t words = bytes / static_cast<std::int64_t>(sizeof(Word));
  const std::int64_t blocks = (p.count * words + kThreads - 1) / kThreads;
  gather<Word>
      <<<static_cast<unsigned>(std::min<std::int64_t>(blocks, 1 << 16)), kThreads, 0, stream>>>(
          p, words);
}

}  // namespace

void expert_gelu_cuda(const ExpertGelu& p, Stream stream) {
  if (p.count == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  if (p.element == Element::f32) {
    launch_gelu<Element::f32>(p, queue);
  } else {
    launch_gelu<Element::bf16>(p, queue);
  }
  check_cuda(cudaGetLastError(), "expert_gelu");
}

void gather_rows_cuda(const GatherRows& p, Stream stream) {
  if (p.count == 0 || p.width == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  const std::int64_t bytes = p.width * element_bytes(p.element);
  const auto address = reinterpret_cast<std::uintptr_t>(p.rows) |
                       reinterpret_cast<std::uintptr_t>(p.out) | static_cast<std::uintptr_t>(bytes);
  if (address % 16 == 0) {
    launch_gather<uint4>(p, bytes, queue);
  } else if (address % 4 == 0) {
    launch_gather<unsigned>(p, bytes, queue);
  } else {
    launch_gather<unsigned short>(p, bytes, queue);
  }
  check_cuda(cudaGetLastError(), "gather_rows");
}

}  // namespace subspace::kernels
