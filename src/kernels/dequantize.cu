#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>

#include "kernels/dequantize.h"
#include "kernels/launch.h"

namespace subspace::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kTileBytes = kThreads * 16;

__global__ void reset(long long* first_bad) { *first_bad = INT64_MAX; }

template <Format kFormat>
struct Element;
template <>
struct Element<Format::f64> {
  using Bits = double;
  static __device__ double value(Bits bits) { return bits; }
};
template <>
struct Element<Format::f32> {
  using Bits = float;
  static __device__ double value(Bits bits) { return bits; }
};
template <>
struct Element<Format::f16> {
  using Bits = unsigned short;
  static __device__ double value(Bits bits) { return __half2float(__ushort_as_half(bits)); }
};
template <>
struct Element<Format::bf16> {
  using Bits = unsigned short;
  static __device__ double value(Bits bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
  }
};
template <>
struct Element<Format::f8_e4m3> {
  using Bits = unsigned char;
  // Shifted into a half's fields the code is its value times 2^-8, subnormals included.
  static __device__ double value(Bits bits) {
    if ((bits & 0x7f) == 0x7f) return __longlong_as_double(0x7ff8000000000000LL);
    const auto half = static_cast<unsigned short>((bits & 0x80) << 8 | (bits & 0x7f) << 7);
    return 256.0 * __half2float(__ushort_as_half(half));
  }
};
template <>
struct Element<Format::f8_e8m0> {
  using Bits = unsigned char;
  static __device__ double value(Bits bits) {
    if (bits == 255) return __longlong_as_double(0x7ff8000000000000LL);
    return __longlong_as_double(static_cast<long long>(bits + 1023 - 127) << 52);
  }
};

/// A block takes tiles of 4096 input bytes: each thread fetches 16 of them into shared memory, then
/// the block writes the tile's values side by side, so that both sides of the copy are coalesced
/// although the output is up to eight times as wide.
template <Format kFormat>
__global__ void dequantize(Dequantize p, long long* first_bad) {
  using Bits = typename Element<kFormat>::Bits;
  constexpr int kTile = kTileBytes / static_cast<int>(sizeof(Bits));
  __shared__ alignas(16) unsigned char staged[kTileBytes];
  const std::int64_t values = p.rows * p.cols;
  const auto* in = static_cast<const unsigned char*>(p.in);
  const bool aligned = reinterpret_cast<std::uintptr_t>(in) % 16 == 0;
  long long bad = INT64_MAX;

  for (std::int64_t start = std::int64_t{blockIdx.x} * kTile; start < values;
       start += std::int64_t{gridDim.x} * kTile) {
    const std::int64_t byte0 = start * static_cast<std::int64_t>(sizeof(Bits));
    const std::int64_t left = values * static_cast<std::int64_t>(sizeof(Bits)) - byte0;
    const int offset = static_cast<int>(threadIdx.x) * 16;
    if (aligned && offset + 16 <= left) {
      *reinterpret_cast<uint4*>(staged + offset) =
          *reinterpret_cast<const uint4*>(in + byte0 + offset);
    } else {
      for (int i = offset; i < offset + 16 && i < left; ++i) staged[i] = in[byte0 + i];
    }
    __syncthreads();
    // One wide division a tile; inside it 32 bits suffice, since a tile has at most 4096 values.
    const std::int64_t row0 = start / p.cols;
    const std::int64_t col0 = start - row0 * p.cols;
    const auto count = static_cast<int>(
        min(static_cast<long long>(kTile), static_cast<long long>(values - start)));
    for (int k = static_cast<int>(threadIdx.x); k < count; k += kThreads) {
      std::int64_t row = row0;
      std::int64_t col = col0 + k;
      if (col >= p.cols) {  // then cols < 2^32: col0 + k >= cols needs cols - col0 <= 4096
        const std::int64_t over = col - p.cols;
        const std::int64_t rows =
            p.cols > kTile ? 0 : static_cast<unsigned>(over) / static_cast<unsigned>(p.cols);
        row += 1 + rows;
        col = over - rows * p.cols;
      }
      double value = Element<kFormat>::value(reinterpret_cast<const Bits*>(staged)[k]);
      if (p.scale != nullptr) {
        value *= p.scale[(p.row0 + row) / p.block_rows * p.scale_stride + col / p.block_cols];
      }
      p.out[start + k] = value;
      if (!isfinite(value)) bad = min(bad, static_cast<long long>(start + k));
    }
    __syncthreads();
  }
  if (bad != INT64_MAX) atomicMin(first_bad, bad);
}

template <Format kFormat>
void launch(const Dequantize& p, long long* first_bad, cudaStream_t stream) {
  const std::int64_t tile =
      kTileBytes / static_cast<std::int64_t>(sizeof(typename Element<kFormat>::Bits));
  const std::int64_t tiles = (p.rows * p.cols + tile - 1) / tile;
  reset<<<1, 1, 0, stream>>>(first_bad);
  if (tiles > 0) {
    const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(tiles, 1 << 20));
    dequantize<kFormat><<<blocks, kThreads, 0, stream>>>(p, first_bad);
  }
}

}  // namespace

void dequantize_cuda(const Dequantize& p, std::int64_t* first_bad, Stream stream) {
  static_assert(sizeof(long long) == sizeof(std::int64_t));
  auto* bad = reinterpret_cast<long long*>(first_bad);
  auto* queue = static_cast<cudaStream_t>(stream);
  switch (p.format) {
    case Format::f64:
      launch<Format::f64>(p, bad, queue);
      break;
    case Format::f32:
      launch<Format::f32>(p, bad, queue);
      break;
    case Format::f16:
      launch<Format::f16>(p, bad, queue);
      break;
    case Format::bf16:
      launch<Format::bf16>(p, bad, queue);
      break;
    case Format::f8_e4m3:
      launch<Format::f8_e4m3>(p, bad, queue);
      break;
    case Format::f8_e8m0:
      launch<Format::f8_e8m0>(p, bad, queue);
      break;
  }
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) {
    launch_failed("dequantize", cudaGetErrorString(status));
  }
}

}  // namespace subspace::kernels
