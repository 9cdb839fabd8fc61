#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/element.h"

namespace subspace::kernels {

constexpr unsigned kWholeWarp = 0xffffffff;

/// 16 bytes of a row: what one lane loads at a time.
template <Element kElement>
struct Vector;

template <>
struct Vector<Element::bf16> {
  static constexpr int kValues = 8;
  static __device__ void unpack(const uint4& raw, float (&v)[8]) {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = __uint_as_float(words[i] << 16);
      v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
  /// The same by other instructions, so that the compiler does not keep what it unpacked once for a
  /// second use: eight float registers for each vector cost more than unpacking it again.
  static __device__ void unpack_again(const uint4& raw, float (&v)[8]) {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      unsigned low, high;
      asm("prmt.b32 %0, %1, 0, 0x1044;" : "=r"(low) : "r"(words[i]));
      asm("prmt.b32 %0, %1, 0, 0x3244;" : "=r"(high) : "r"(words[i]));
      v[2 * i] = __uint_as_float(low);
      v[2 * i + 1] = __uint_as_float(high);
    }
  }
  static __device__ uint4 pack(const float* v) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
      words[i] = *reinterpret_cast<const unsigned*>(&pair);
    }
    return {words[0], words[1], words[2], words[3]};
  }
};

template <>
struct Vector<Element::f32> {
  static constexpr int kValues = 4;
  static __device__ void unpack(const uint4& raw, float (&v)[4]) {
    v[0] = __uint_as_float(raw.x);
    v[1] = __uint_as_float(raw.y);
    v[2] = __uint_as_float(raw.z);
    v[3] = __uint_as_float(raw.w);
  }
  static __device__ void unpack_again(const uint4& raw, float (&v)[4]) { unpack(raw, v); }
  static __device__ uint4 pack(const float* v) {
    return {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
            __float_as_uint(v[3])};
  }
};

/// Vector `at` of row `row`, whose rows have `vectors` vectors each.
__device__ inline uint4 load_vector(const void* rows, std::int64_t row, int vectors, int at) {
  return __ldg(static_cast<const uint4*>(rows) + row * vectors + at);
}

/// Sums kRows values over the warp at once: lane l gets the sum of value l / (32 / kRows). Halving
/// the number of values with each exchange takes kRows + 1 shuffles or so instead of 5 kRows.
template <int kRows>
__device__ float sum_rows(float (&v)[kRows]) {
  const int lane = threadIdx.x % 32;
  int offset = 16;
#pragma unroll
  for (int count = kRows / 2; count > 0; count /= 2, offset /= 2) {
    const bool upper = lane & offset;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float keep = upper ? v[i + count] : v[i];
      const float give = upper ? v[i] : v[i + count];
      v[i] = keep + __shfl_xor_sync(kWholeWarp, give, offset);
    }
  }
#pragma unroll
  for (; offset > 0; offset /= 2) v[0] += __shfl_xor_sync(kWholeWarp, v[0], offset);
  return v[0];
}

/// Ascending bitonic sort of `count` (a power of two) keys in shared memory by one warp.
__device__ inline void sort_keys(unsigned long long* keys, int count) {
  const int lane = threadIdx.x % 32;
  for (int size = 2; size <= count; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int i = lane; i < count / 2; i += 32) {
        const int low = 2 * i - (i & (stride - 1));
        const unsigned long long a = keys[low], b = keys[low + stride];
        if ((a > b) == ((low & size) == 0)) {
          keys[low] = b;
          keys[low + stride] = a;
        }
      }
      __syncwarp();
    }
  }
}

}  // namespace subspace::kernels
