#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda_check.cuh"
#include "kernels/short_attention.h"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

constexpr int kLength = kShortLength;
constexpr int kHead = kShortHead;
constexpr int kPitch = 40;  // of a row in shared memory: eight rows' 16 bytes lie in all banks
constexpr int kChunk = 32;  // keys (or queries) at a time
constexpr int kThreads = 2 * kLength;
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

using Tile = __nv_bfloat16[kLength * kPitch];
using Fragment = unsigned[4];  // of a 16 x 16 left operand, or of two 16 x 8 right ones
using Sums = float[4];         // of a 16 x 8 product

__device__ void load_matrix(Fragment& to, const __nv_bfloat16* from) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(from));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}
__device__ void load_transposed(Fragment& to, const __nv_bfloat16* from) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(from));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

/// sums += a b.
__device__ void multiply(Sums& sums, const Fragment& a, unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ unsigned pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

/// 16 rows of a tile from `row` on as left operands: all 32 coordinates.
__device__ void left_rows(Fragment (&to)[2], const __nv_bfloat16* tile, int row) {
  const int lane = threadIdx.x % 32;
  const __nv_bfloat16* from = tile + (row + lane % 16) * kPitch + lane / 16 * 8;
  load_matrix(to[0], from);
  load_matrix(to[1], from + 16);
}

/// a (16 rows) times rows of `tile` from `row` on, transposed: 16 x kChunk.
__device__ void times_rows(Sums (&sums)[kChunk / 8], const Fragment (&a)[2],
                           const __nv_bfloat16* tile, int row) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kChunk / 8; ++j) {
    Fragment b;
    load_matrix(b, tile + (row + 8 * j + lane % 8) * kPitch + lane / 8 * 8);
    sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0;
    multiply(sums[j], a[0], b[0], b[1]);
    multiply(sums[j], a[1], b[2], b[3]);
  }
}

/// sums [16 x 32] += weights [16 x kChunk] times rows of `tile` from `row` on.
__device__ void add_weighted(Sums (&sums)[kHead / 8], const Sums (&weights)[kChunk / 8],
                             const __nv_bfloat16* tile, int row) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 0; step < kChunk / 16; ++step) {
    const Sums &near = weights[2 * step], &far = weights[2 * step + 1];
    const Fragment a = {pack(near[0], near[1]), pack(near[2], near[3]), pack(far[0], far[1]),
                        pack(far[2], far[3])};
#pragma unroll
    for (int n = 0; n < kHead / 16; ++n) {
      Fragment b;
      load_transposed(b, tile + (row + 16 * step + lane % 16) * kPitch + n * 16 + lane / 16 * 8);
      multiply(sums[2 * n], a, b[0], b[1]);
      multiply(sums[2 * n + 1], a, b[2], b[3]);
    }
  }
}

/// The head of an operand without gaps that this block has.
struct Mine {
  std::int64_t row, token, head;  // of the batch; its first token; the head
  __device__ explicit Mine(const ShortAttention& p)
      : row(blockIdx.x / p.heads), token(row * p.length), head(blockIdx.x % p.heads) {}
  __device__ HeadRows rows(const ShortAttention& p, const void* data) const {
    return {data, p.heads * kHead, kHead};
  }
};

__device__ const uint4* vector_of(const HeadRows& rows, const Mine& mine, int t, int vector) {
  const auto* start = static_cast<const __nv_bfloat16*>(rows.data);
  return reinterpret_cast<const uint4*>(start + (mine.token + t) * rows.token +
                                        mine.head * rows.head) +
         vector;
}

__device__ void load_tile(Tile& tile, const HeadRows& rows, const Mine& mine, int length) {
  for (int i = threadIdx.x; i < length * 4; i += blockDim.x) {
    const int t = i / 4, vector = i % 4;
    *reinterpret_cast<uint4*>(tile + t * kPitch + vector * 8) = *vector_of(rows, mine, t, vector);
  }
}

/// 16 rows of sums, through their rows of `tile`, which nobody else reads any more, to memory.
__device__ void store_rows(const Sums (&sums)[kHead / 8], float low_factor, float high_factor,
                           __nv_bfloat16* tile, int row, void* out, const ShortAttention& p,
                           const Mine& mine) {
  const int lane = threadIdx.x % 32;
  __nv_bfloat16* low = tile + (row + lane / 4) * kPitch + lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < kHead / 8; ++n) {
    *reinterpret_cast<unsigned*>(low + n * 8) =
        pack(sums[n][0] * low_factor, sums[n][1] * low_factor);
    *reinterpret_cast<unsigned*>(low + 8 * kPitch + n * 8) =
        pack(sums[n][2] * high_factor, sums[n][3] * high_factor);
  }
  __syncwarp();
  const HeadRows rows = mine.rows(p, out);
  for (int i = lane; i < 16 * 4; i += 32) {
    const int t = row + i / 4, vector = i % 4;
    *const_cast<uint4*>(vector_of(rows, mine, t, vector)) =
        *reinterpret_cast<const uint4*>(tile + t * kPitch + vector * 8);
  }
}

__device__ float over_row(float value, bool largest) {
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2) {
    const float other = __shfl_xor_sync(kWholeWarp, value, offset);
    value = largest ? fmaxf(value, other) : value + other;
  }
  return value;
}

__global__ void __launch_bounds__(kThreads) forward(ShortAttention p) {
  __shared__ __align__(16) Tile q, k, v;
  const Mine mine(p);
  const int length = static_cast<int>(p.length);
  load_tile(q, mine.rows(p, p.q), mine, length);
  load_tile(k, mine.rows(p, p.k), mine, length);
  load_tile(v, p.v, mine, length);
  __syncthreads();
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
  Fragment queries[2];
  left_rows(queries, q, row);
  Sums out[kHead / 8] = {};
  // Of rows lane / 4 and 8 below: the largest score so far and the sum, in powers of two.
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  const float scale = p.scale * kLog2e;
  const int end = p.causal ? row + 16 : length;
  for (int begin = 0; begin < end; begin += kChunk) {
    Sums s[kChunk / 8];
    times_rows(s, queries, k, begin);
    float high[2] = {most[0], most[1]};
#pragma unroll
    for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = begin + 8 * j + lane % 4 * 2 + i % 2, query = row + lane / 4 + i / 2 * 8;
        s[j][i] = p.causal && key > query ? -INFINITY : s[j][i] * scale;
        high[i / 2] = fmaxf(high[i / 2], s[j][i]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      high[half] = over_row(high[half], true);
      const float factor = exp2f(most[half] - high[half]);
      most[half] = high[half];
      sum[half] *= factor;
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) {
        out[n][2 * half] *= factor;
        out[n][2 * half + 1] *= factor;
      }
    }
#pragma unroll
    for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[j][i] = exp2f(s[j][i] - most[i / 2]);
        sum[i / 2] += s[j][i];
      }
    }
    add_weighted(out, s, v, begin);
  }
  sum[0] = over_row(sum[0], false);
  sum[1] = over_row(sum[1], false);
  if (lane % 4 == 0) {
    float* lse = p.lse + blockIdx.x * p.length + row + lane / 4;
    lse[0] = (most[0] + log2f(sum[0])) * kLn2;
    lse[8] = (most[1] + log2f(sum[1])) * kLn2;
  }
  store_rows(out, 1 / sum[0], 1 / sum[1], q, row, p.out, p, mine);
}

__global__ void __launch_bounds__(kThreads, 2) backward(ShortAttentionGrad g) {
  __shared__ __align__(16) Tile q, k, v, grad;
  __shared__ float lse[kLength], shift[kLength];
  const ShortAttention& p = g.forward;
  const Mine mine(p);
  const int length = static_cast<int>(p.length);
  load_tile(q, mine.rows(p, p.q), mine, length);
  load_tile(k, mine.rows(p, p.k), mine, length);
  load_tile(v, p.v, mine, length);
  const HeadRows grads = mine.rows(p, g.grad), outs = mine.rows(p, p.out);
  for (int i = threadIdx.x; i < length * 4; i += blockDim.x) {
    const int t = i / 4, vector = i % 4;
    const uint4 raw = *vector_of(grads, mine, t, vector);
    *reinterpret_cast<uint4*>(grad + t * kPitch + vector * 8) = raw;
    float a[8], b[8], dot = 0;
    Vector<Element::bf16>::unpack(raw, a);
    Vector<Element::bf16>::unpack(*vector_of(outs, mine, t, vector), b);
#pragma unroll
    for (int j = 0; j < 8; ++j) dot = fmaf(a[j], b[j], dot);
    dot = over_row(dot, false);  // the four vectors of a row are in four lanes
    if (vector == 0) {
      shift[t] = dot;
      lse[t] = p.lse[blockIdx.x * p.length + t] * kLog2e;
    }
  }
  __syncthreads();
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
  const float scale = p.scale * kLog2e;

  // Queries of this warp against all keys: dq.
  Sums grad_q[kHead / 8] = {};
  {
    Fragment queries[2], grads_here[2];
    left_rows(queries, q, row);
    left_rows(grads_here, grad, row);
    const float my_lse[2] = {lse[row + lane / 4], lse[row + lane / 4 + 8]};
    const float my_shift[2] = {shift[row + lane / 4], shift[row + lane / 4 + 8]};
    const int end = p.causal ? row + 16 : length;
    for (int begin = 0; begin < end; begin += kChunk) {
      Sums s[kChunk / 8], d[kChunk / 8];
      times_rows(s, queries, k, begin);
      times_rows(d, grads_here, v, begin);
#pragma unroll
      for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = begin + 8 * j + lane % 4 * 2 + i % 2, query = row + lane / 4 + i / 2 * 8;
          const float weight = exp2f(s[j][i] * scale - my_lse[i / 2]);
          s[j][i] = p.causal && key > query ? 0 : weight * (d[j][i] - my_shift[i / 2]);
        }
      }
      add_weighted(grad_q, s, k, begin);
    }
  }

  // Keys of this warp against all queries: dk and dv.
  Sums grad_k[kHead / 8] = {}, grad_v[kHead / 8] = {};
  {
    Fragment keys[2], values[2];
    left_rows(keys, k, row);
    left_rows(values, v, row);
    for (int begin = p.causal ? row / kChunk * kChunk : 0; begin < length; begin += kChunk) {
      Sums s[kChunk / 8], d[kChunk / 8];
      times_rows(s, keys, q, begin);
      times_rows(d, values, grad, begin);
#pragma unroll
      for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int query = begin + 8 * j + lane % 4 * 2 + i % 2, key = row + lane / 4 + i / 2 * 8;
          const float weight = p.causal && key > query ? 0 : exp2f(s[j][i] * scale - lse[query]);
          d[j][i] = weight * (d[j][i] - shift[query]);
          s[j][i] = weight;
        }
      }
      add_weighted(grad_v, s, grad, begin);
      add_weighted(grad_k, d, q, begin);
    }
  }
  __syncthreads();  // the tiles have been read by all
  store_rows(grad_q, p.scale, p.scale, q, row, g.grad_q, p, mine);
  store_rows(grad_k, p.scale, p.scale, k, row, g.grad_k, p, mine);
  store_rows(grad_v, 1, 1, v, row, g.grad_v, p, mine);
}

}  // namespace

void short_attention_cuda(const ShortAttention& p, Stream stream) {
  if (p.rows * p.length == 0) return;
  forward<<<static_cast<unsigned>(p.rows * p.heads), static_cast<unsigned>(2 * p.length), 0,
            static_cast<cudaStream_t>(stream)>>>(p);
  check_cuda(cudaGetLastError(), "short_attention");
}

void short_attention_grad_cuda(const ShortAttentionGrad& p, Stream stream) {
  if (p.forward.rows * p.forward.length == 0) return;
  backward<<<static_cast<unsigned>(p.forward.rows * p.forward.heads),
             static_cast<unsigned>(2 * p.forward.length), 0, static_cast<cudaStream_t>(stream)>>>(
      p);
  check_cuda(cudaGetLastError(), "short_attention_grad");
}

}  // namespace subspace::kernels
