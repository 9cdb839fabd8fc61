#include <algorithm>
#include <cstdint>

#include "kernels/cuda_check.cuh"
#include "kernels/expert_grad.h"
#include "kernels/gelu.h"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

constexpr int kWarps = 8;  // of a block

/// The launch's view of the parameters, in 16-byte vectors.
struct Sum {
  const void* grad;
  const void* vectors;
  const float2* weights;
  const std::uint32_t* expert;
  const std::uint32_t* selection;
  const std::uint32_t* offsets;
  uint4* output;
  uint4* input;
  const void* pre;
  float* partial;
  std::uint32_t count;
  std::uint32_t experts;
  std::uint32_t selections;
  int row_vectors;
};

/// One half of the warp takes rows of g, the other the same rows of x; lane l of a half holds
/// vectors l, l + 16, ... of the slice.
template <Element kElement, int kVectors>
struct Slice {
  using Type = Vector<kElement>;
  float sum[kVectors][Type::kValues] = {};
  const void* rows;
  int column;  // this lane's first vector
  int row_vectors;
  bool upper;

  __device__ explicit Slice(const Sum& s)
      : column(static_cast<int>(blockIdx.y) * 16 * kVectors + threadIdx.x % 16),
        row_vectors(s.row_vectors),
        upper(threadIdx.x % 32 >= 16) {
    rows = upper ? s.vectors : s.grad;
  }

  __device__ bool has(int v) const { return column + 16 * v < row_vectors; }

  /// Adds selections [begin, end) of the sorted order, kRows of them in flight.
  template <int kRows>
  __device__ void add(const Sum& s, std::uint32_t begin, std::uint32_t end) {
    const std::uint32_t lane = threadIdx.x % 32;
    for (std::uint32_t start = begin; start < end; start += 32) {
      const int count = static_cast<int>(min(32u, end - start));
      std::uint32_t token = 0;
      float2 weights = {};
      if (lane < count) {
        const std::uint32_t selection = s.selection[start + lane];
        token = selection / s.selections;
        weights = __ldg(s.weights + selection);
      }
      for (int base = 0; base < count; base += kRows) {
        uint4 raw[kRows][kVectors];
        float weight[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          // Past the end lane 31 or less answers with token 0 and weight 0, or nothing is loaded.
          const std::int64_t row = __shfl_sync(kWholeWarp, token, base + r);
          const float a = __shfl_sync(kWholeWarp, weights.x, base + r);
          const float b = __shfl_sync(kWholeWarp, weights.y, base + r);
          weight[r] = upper ? b : a;
#pragma unroll
          for (int v = 0; v < kVectors; ++v) {
            raw[r][v] = base + r < count && has(v)
                            ? load_vector(rows, row, row_vectors, column + 16 * v)
                            : uint4{};
          }
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (base + r >= count) break;
#pragma unroll
          for (int v = 0; v < kVectors; ++v) {
            float values[Type::kValues];
            Type::unpack(raw[r][v], values);
#pragma unroll
            for (int i = 0; i < Type::kValues; ++i) {
              sum[v][i] = fmaf(weight[r], values[i], sum[v][i]);
            }
          }
        }
      }
    }
  }
};

/// Place of a piece's sum in the workspace: one float row, or two with two tables.
__device__ float* place(const Sum& s, std::uint32_t piece, int slot, bool second, int values) {
  const int tables = s.input == nullptr ? 1 : 2;
  const std::int64_t row = (std::int64_t{piece} * 2 + slot) * tables + (second ? 1 : 0);
  return s.partial + row * s.row_vectors * values;
}

/// Sums of the pieces of long lists. A piece is kLongList places of the sorted order; at most the
/// expert of its first place and that of its last have lists that are longer.
template <Element kElement, int kVectors, int kRows>
__global__ void __launch_bounds__(32 * kWarps) sum_pieces(Sum s) {
  using Type = Vector<kElement>;
  const std::uint32_t item = blockIdx.x * kWarps + threadIdx.x / 32;
  const std::uint32_t piece = item / 2;
  const int slot = item % 2;
  const auto length = static_cast<std::uint32_t>(kLongList);
  if (piece * length >= s.count) return;
  const std::uint32_t from = piece * length, to = min(from + length, s.count);
  const std::uint32_t e = s.expert[slot == 0 ? from : to - 1];
  if (e >= s.experts || (slot == 1 && e == s.expert[from])) return;
  const std::uint32_t begin = s.offsets[e], end = s.offsets[e + 1];
  if (end - begin <= length) return;
  Slice<kElement, kVectors> slice(s);
  slice.template add<kRows>(s, max(begin, from), min(end, to));
  const bool two = s.input != nullptr;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float* out = place(s, piece, slot, two && slice.upper, Type::kValues) +
                 (slice.column + 16 * v) * Type::kValues;
#pragma unroll
    for (int i = 0; i < Type::kValues; ++i) {
      float value = slice.sum[v][i];
      if (!two) value += __shfl_xor_sync(kWholeWarp, value, 16);
      if (slice.has(v) && (two || !slice.upper)) out[i] = value;
    }
  }
}

/// One warp an expert and a slice of columns.
template <Element kElement, int kVectors, int kRows>
__global__ void __launch_bounds__(32 * kWarps, kElement == Element::f32 && kVectors == 4 ? 2 : 3)
    sum_lists(Sum s) {
  using Type = Vector<kElement>;
  const std::uint32_t e = blockIdx.x * kWarps + threadIdx.x / 32;
  if (e >= s.experts) return;
  const std::uint32_t begin = s.offsets[e], end = s.offsets[e + 1];
  const auto length = static_cast<std::uint32_t>(kLongList);
  Slice<kElement, kVectors> slice(s);
  const bool two = s.input != nullptr;
  const bool pieces = end - begin > length;
  if (!pieces) slice.template add<kRows>(s, begin, end);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int column = slice.column + 16 * v;
    float total[Type::kValues] = {};
    if (pieces) {
      if (slice.has(v)) {
        for (std::uint32_t piece = begin / length; piece * length < end; ++piece) {
          const int slot = begin <= piece * length ? 0 : 1;
          const float* from =
              place(s, piece, slot, two && slice.upper, Type::kValues) + column * Type::kValues;
#pragma unroll
          for (int i = 0; i < Type::kValues; ++i) total[i] += from[i];
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < Type::kValues; ++i) {
        total[i] = slice.sum[v][i];
        if (!two) total[i] += __shfl_xor_sync(kWholeWarp, total[i], 16);
      }
    }
    if (!slice.has(v) || (!two && slice.upper)) continue;
    if (s.pre != nullptr) {
      float pre[Type::kValues];
      Type::unpack(load_vector(s.pre, e, s.row_vectors, column), pre);
#pragma unroll
      for (int i = 0; i < Type::kValues; ++i) total[i] *= gelu_fast(pre[i]).slope;
    }
    uint4* out = two && slice.upper ? s.input : s.output;
    __stcs(out + std::int64_t{e} * s.row_vectors + column, Type::pack(total));
  }
}

template <Element kElement, int kVectors, int kRows>
void launch(const Sum& s, cudaStream_t stream) {
  const int span = 16 * kVectors;
  const auto slices = static_cast<unsigned>((s.row_vectors + span - 1) / span);
  const std::uint32_t items = (s.count + kLongList - 1) / kLongList * 2;
  if (items > 0) {
    const dim3 grid((items + kWarps - 1) / kWarps, slices);
    sum_pieces<kElement, kVectors, kRows><<<grid, 32 * kWarps, 0, stream>>>(s);
    check_cuda(cudaGetLastError(), "expert_grad");
  }
  const dim3 grid((s.experts + kWarps - 1) / kWarps, slices);
  sum_lists<kElement, kVectors, kRows><<<grid, 32 * kWarps, 0, stream>>>(s);
  check_cuda(cudaGetLastError(), "expert_grad");
}

template <Element kElement>
void launch_slices(const Sum& s, int vectors, cudaStream_t stream) {
  if (vectors == 1) {
    launch<kElement, 1, 8>(s, stream);
  } else if (vectors == 2) {
    launch<kElement, 2, 4>(s, stream);
  } else {
    launch<kElement, 4, 2>(s, stream);
  }
}

}  // namespace

void expert_grad_cuda(const ExpertGrad& p, Stream stream, std::int64_t columns) {
  if (p.lists.experts == 0) return;
  if (columns == 0) {
    int device = 0, cache = 0;
    check_cuda(cudaGetDevice(&device), "expert_grad");
    check_cuda(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device), "expert_grad");
    columns = expert_grad_columns(p.tokens, p.width, p.element, cache);
  }
  const std::int64_t bytes = element_bytes(p.element);
  Sum s{};
  s.grad = p.grad;
  s.vectors = p.vectors;
  s.weights = reinterpret_cast<const float2*>(p.weights);
  s.expert = p.lists.expert;
  s.selection = p.lists.selection;
  s.offsets = p.lists.offsets;
  s.output = static_cast<uint4*>(p.output);
  s.input = static_cast<uint4*>(p.input);
  s.pre = p.pre;
  s.partial = p.partial;
  s.count = static_cast<std::uint32_t>(p.lists.count);
  s.experts = static_cast<std::uint32_t>(p.lists.experts);
  s.selections = static_cast<std::uint32_t>(p.selections);
  s.row_vectors = static_cast<int>(p.width * bytes / 16);
  const int vectors = static_cast<int>(columns * bytes / (16 * 16));
  auto* queue = static_cast<cudaStream_t>(stream);
  if (p.element == Element::bf16) {
    launch_slices<Element::bf16>(s, vectors, queue);
  } else {
    launch_slices<Element::f32>(s, vectors, queue);
  }
}

}  // namespace subspace::kernels
