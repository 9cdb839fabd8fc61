#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda_check.cuh"
#include "kernels/product_key_topk.h"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

constexpr int kWarps = 4;  // of a block

/// One warp a row of both sides; the row of sums is made in shared memory, kTile places at a time.
constexpr int kTile = 1024;

/// A row's winners, in whole vectors of four: those past the last have the place -1.
struct alignas(16) WinnerGrads {
  float grad[kMostWinners];
  int place[kMostWinners];
};

/// Sum of the gradients at winner j's place, in the winners' order; `first`: none before it has it.
__device__ float sum_at(const WinnerGrads& w, int j, int k, bool& first) {
  const int place = w.place[j];
  float sum = 0;
  first = true;
  for (int i = 0; i < k; i += 4) {
    const int4 places = *reinterpret_cast<const int4*>(w.place + i);
    const float4 grads = *reinterpret_cast<const float4*>(w.grad + i);
    const auto add = [&](int other, float grad, int at) {
      if (other != place) return;
      first = first && at >= j;
      sum += grad;
    };
    add(places.x, grads.x, i);
    add(places.y, grads.y, i + 1);
    add(places.z, grads.z, i + 2);
    add(places.w, grads.w, i + 3);
  }
  return sum;
}

/// `length` values of a tile to out[start..] of a row.
template <Element kElement>
__device__ void write_tile(const float* tile, void* row, int start, int length, bool aligned) {
  constexpr int kVector = Vector<kElement>::kValues;
  const int lane = threadIdx.x % 32;
  if (aligned) {
    for (int i = lane * kVector; i < length; i += 32 * kVector) {
      float v[kVector];
#pragma unroll
      for (int c = 0; c < kVector; c += 4) {
        *reinterpret_cast<float4*>(v + c) = *reinterpret_cast<const float4*>(tile + i + c);
      }
      __stcs(static_cast<uint4*>(row) + (start + i) / kVector, Vector<kElement>::pack(v));
    }
    return;
  }
  for (int i = lane; i < length; i += 32) {
    if constexpr (kElement == Element::f32) {
      static_cast<float*>(row)[start + i] = tile[i];
    } else {
      static_cast<__nv_bfloat16*>(row)[start + i] = __float2bfloat16_rn(tile[i]);
    }
  }
}

template <Element kElement>
__global__ void __launch_bounds__(32 * kWarps) scatter(ProductKeyTopkGrad p) {
  __shared__ WinnerGrads winners[kWarps];
  __shared__ alignas(16) float tiles[kWarps][kTile];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int k = static_cast<int>(p.k), side = static_cast<int>(p.side);
  constexpr int kBytes = kElement == Element::f32 ? 4 : 2;
  const bool aligned = side % Vector<kElement>::kValues == 0 &&
                       reinterpret_cast<std::uintptr_t>(p.grad_s1) % 16 == 0 &&
                       reinterpret_cast<std::uintptr_t>(p.grad_s2) % 16 == 0;
  WinnerGrads& w = winners[warp];
  float* tile = tiles[warp];
  for (std::int64_t row = std::int64_t{blockIdx.x} * kWarps + warp; row < p.rows;
       row += std::int64_t{gridDim.x} * kWarps) {
    float inner = 0;
    if (p.weights != nullptr) {
      for (int j = lane; j < k; j += 32) inner += p.weights[row * k + j] * p.grad[row * k + j];
      for (int offset = 16; offset > 0; offset /= 2) {
        inner += __shfl_xor_sync(kWholeWarp, inner, offset);
      }
    }
    for (int j = lane; j < k; j += 32) {
      const float grad = p.grad[row * k + j];
      w.grad[j] = p.weights == nullptr ? grad : p.weights[row * k + j] * (grad - inner);
    }
    const auto pairs = static_cast<std::uint64_t>(p.side * p.side);
    bool outside = false;
    for (int j = lane; j < k; j += 32) {
      outside = outside || static_cast<std::uint64_t>(p.index[row * k + j]) >= pairs;
    }
    // Then no winner is put anywhere: a sum in the wrong place would not be seen.
    outside = __any_sync(kWholeWarp, outside);
    const float nothing = outside ? __uint_as_float(0x7fffffffu) : 0.0f;
    for (int which = 0; which < 2; ++which) {
      __syncwarp();
      for (int j = lane; j < (k + 3) / 4 * 4; j += 32) {
        const auto index = static_cast<unsigned>(j < k ? p.index[row * k + j] : 0);
        w.place[j] = j < k ? static_cast<int>(which == 0 ? index / side : index % side) : -1;
      }
      char* out = static_cast<char*>(which == 0 ? p.grad_s1 : p.grad_s2) + row * side * kBytes;
      for (int start = 0; start < side; start += kTile) {
        const int length = min(kTile, side - start);
        for (int i = 4 * lane; i < length; i += 128) {
          *reinterpret_cast<float4*>(tile + i) = {nothing, nothing, nothing, nothing};
        }
        __syncwarp();
        for (int j = lane; j < k && !outside; j += 32) {
          const int place = w.place[j];
          if (place < start || place >= start + length) continue;
          bool first;
          const float sum = sum_at(w, j, k, first);
          if (first) tile[place - start] = sum;
        }
        __syncwarp();
        write_tile<kElement>(tile, out, start, length, aligned);
        __syncwarp();
      }
    }
  }
}

}  // namespace

void product_key_topk_grad_cuda(const ProductKeyTopkGrad& p, Stream stream) {
  if (p.rows == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  const auto grid =
      static_cast<unsigned>(std::min<std::int64_t>((p.rows + kWarps - 1) / kWarps, 132 * 64));
  if (p.element == Element::f32) {
    scatter<Element::f32><<<grid, 32 * kWarps, 0, queue>>>(p);
  } else {
    scatter<Element::bf16><<<grid, 32 * kWarps, 0, queue>>>(p);
  }
  check_cuda(cudaGetLastError(), "product_key_topk_grad");
}

}  // namespace subspace::kernels
