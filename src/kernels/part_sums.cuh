#pragma once

#include <cstdint>

#include "kernels/warp_rows.cuh"

namespace subspace::kernels {

/// out[token, :] = sum over parts of partial[token, part, :], in order; `vectors` 16-byte vectors a
/// row of out. A thread a vector.
template <Element kElement>
__global__ void sum_parts(const float* partial, int parts, int vectors, std::int64_t tokens,
                          uint4* out) {
  constexpr int kValues = Vector<kElement>::kValues;
  const std::int64_t index = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t token = index / vectors, column = index % vectors;
  if (token >= tokens) return;
  float sum[kValues] = {};
  const float* from = partial + (token * parts * vectors + column) * kValues;
#pragma unroll 8
  for (int part = 0; part < parts; ++part) {
#pragma unroll
    for (int i = 0; i < kValues; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      sum[i] += four.x, sum[i + 1] += four.y, sum[i + 2] += four.z, sum[i + 3] += four.w;
    }
    from += vectors * kValues;
  }
  out[index] = Vector<kElement>::pack(sum);
}

template <Element kElement>
void launch_sum_parts(const float* partial, std::int64_t parts, int vectors, std::int64_t tokens,
                      void* out, cudaStream_t stream) {
  constexpr int kThreads = 64;
  const auto blocks = static_cast<unsigned>((tokens * vectors + kThreads - 1) / kThreads);
  sum_parts<kElement><<<blocks, kThreads, 0, stream>>>(partial, static_cast<int>(parts), vectors,
                                                       tokens, static_cast<uint4*>(out));
}

}  // namespace subspace::kernels
