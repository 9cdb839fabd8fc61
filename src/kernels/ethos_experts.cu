#include <algorithm>
#include <cstdint>

#include "kernels/cuda_check.cuh"
#include "kernels/ethos_experts.h"
#include "kernels/gelu.h"
#include "kernels/part_sums.cuh"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

constexpr int kWarps = 4;    // of a block
constexpr int kPiece = 512;  // selections sorted at a time

/// Forward and backward are one walk. A vector of the token (xp or g) meets each chosen row in a
/// dot product, the dot product gives the row's weight, and the weighted rows add up.
struct Walk {
  const void* vector;
  const float* scores;
  const std::int64_t* index;
  const void* table;
  void* sum;
  float* p;
  float* grad_scores;
  RowWeights* weights;
  std::int64_t tokens;
  std::int64_t experts;
  int selections;
  int vectors;  // 16-byte vectors of a row
  int piece;    // keys of shared memory for each warp, a power of two
  bool sorted;
  float* partial;  // of the parts of a token, if it is split
  WalkSplit split;
};

/// The weight of a row, given its dot product, and what has to be written down of it.
template <bool kBackward>
__device__ float weigh(const Walk& w, std::int64_t at, float dot, float score, float p,
                       bool writes) {
  if constexpr (kBackward) {
    const Gelu<float> gelu = gelu_fast(p);
    const float input = gelu.slope * score * dot;
    if (writes) {
      w.grad_scores[at] = gelu.value * dot;
      w.weights[at] = {gelu.value * score, input};
    }
    return input;
  } else {
    if (writes) w.p[at] = dot;
    return gelu_fast(dot).value * score;
  }
}

/// One warp a token, or a part of one; lane l holds vectors l, l + 32, ... of every row.
template <Element kElement, int kVectors, int kRows, int kBlocks, bool kBackward, bool kSplit>
__global__ void __launch_bounds__(32 * kWarps, kBlocks) walk_tokens(Walk w) {
  using Type = Vector<kElement>;
  constexpr int kSpan = 32 / kRows;  // lanes that hold one row's dot product
  extern __shared__ unsigned long long all_keys[];
  unsigned long long* keys = all_keys + threadIdx.x / 32 * w.piece;
  const int lane = threadIdx.x % 32;
  const std::int64_t walk = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const std::int64_t token = kSplit ? walk / w.split.parts : walk;
  if (token >= w.tokens) return;
  const int begin = kSplit ? static_cast<int>(walk % w.split.parts * w.split.each) : 0;
  const int end = kSplit ? min(w.selections, begin + static_cast<int>(w.split.each)) : w.selections;
  const std::int64_t first = token * w.selections;

  uint4 vector[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int at = v * 32 + lane;
    vector[v] = at < w.vectors ? load_vector(w.vector, token, w.vectors, at) : uint4{};
  }
  float sum[kVectors][Type::kValues] = {};

  for (int start = begin; start < end; start += w.piece) {
    const int count = min(w.piece, end - start);
    __syncwarp();
    for (int i = lane; i < w.piece; i += 32) {
      unsigned long long key = ~0ull;
      if (i < count) {
        // An index that is out of range sorts last and is recognised there.
        const std::int64_t expert = w.index[first + start + i];
        const bool valid = expert >= 0 && expert < w.experts;
        key = (valid ? static_cast<unsigned long long>(expert) : 0xffffffffull) << 32 | i;
      }
      keys[i] = key;
    }
    __syncwarp();
    if (w.sorted) sort_keys(keys, w.piece);

    for (int base = 0; base < count; base += kRows) {
      // This lane's own row of the group: its dot product will end here.
      const int mine = base + lane / kSpan;
      const unsigned long long key = keys[min(mine, count - 1)];
      const std::int64_t at = first + start + static_cast<unsigned>(key);
      const bool valid = static_cast<unsigned>(key >> 32) != 0xffffffffu;
      const unsigned row = valid ? static_cast<unsigned>(key >> 32) : 0;
      uint4 raw[kRows][kVectors];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const std::int64_t expert = __shfl_sync(kWholeWarp, row, r * kSpan);
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          const int column = v * 32 + lane;
          raw[r][v] =
              column < w.vectors ? load_vector(w.table, expert, w.vectors, column) : uint4{};
        }
      }
      const float score = w.scores[at];
      const float p = kBackward ? w.p[at] : 0;

      float dots[kRows] = {};
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        float x[Type::kValues];
        Type::unpack(vector[v], x);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float h[Type::kValues];
          Type::unpack(raw[r][v], h);
#pragma unroll
          for (int i = 0; i < Type::kValues; ++i) dots[r] = fmaf(x[i], h[i], dots[r]);
        }
      }
      float dot = sum_rows<kRows>(dots);
      if (!valid) dot = __int_as_float(0x7fc00000);
      const bool counts = mine < count;
      const float weight = weigh<kBackward>(w, at, dot, score, p, counts && lane % kSpan == 0);
      const float mine_weight = counts ? weight : 0;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        // The rows beyond the end are copies of the last one: NaN in it has been counted already.
        if (base + r >= count) break;
        const float a = __shfl_sync(kWholeWarp, mine_weight, r * kSpan);
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          float h[Type::kValues];
          Type::unpack_again(raw[r][v], h);
#pragma unroll
          for (int i = 0; i < Type::kValues; ++i) sum[v][i] = fmaf(a, h[i], sum[v][i]);
        }
      }
    }
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int at = v * 32 + lane;
    if (at >= w.vectors) continue;
    if constexpr (kSplit) {
      float* to = w.partial + (walk * w.vectors + at) * Type::kValues;
#pragma unroll
      for (int i = 0; i < Type::kValues; ++i) to[i] = sum[v][i];
    } else {
      static_cast<uint4*>(w.sum)[token * w.vectors + at] = Type::pack(sum[v]);
    }
  }
}

template <Element kElement, int kVectors, int kRows, int kBlocks, bool kBackward,
          bool kSplit = false>
void launch(const Walk& w, cudaStream_t stream) {
  const std::int64_t walks = w.tokens * (kSplit ? w.split.parts : 1);
  const auto blocks = static_cast<unsigned>((walks + kWarps - 1) / kWarps);
  const std::size_t shared = sizeof(unsigned long long) * kWarps * w.piece;
  walk_tokens<kElement, kVectors, kRows, kBlocks, kBackward, kSplit>
      <<<blocks, 32 * kWarps, shared, stream>>>(w);
}

/// Few tokens: forward, each in parts.
void launch_split(const Walk& w, Element element, cudaStream_t stream) {
  const int lanes = (w.vectors + 31) / 32;
  if (element == Element::bf16) {
    if (lanes == 1) {
      launch<Element::bf16, 1, 8, 6, false, true>(w, stream);
    } else if (lanes == 2) {
      launch<Element::bf16, 2, 8, 3, false, true>(w, stream);
    } else {
      launch<Element::bf16, 4, 2, 4, false, true>(w, stream);
    }
    launch_sum_parts<Element::bf16>(w.partial, w.split.parts, w.vectors, w.tokens, w.sum, stream);
  } else {
    if (lanes <= 2) {
      launch<Element::f32, 2, 4, 6, false, true>(w, stream);
    } else if (lanes <= 4) {
      launch<Element::f32, 4, 2, 5, false, true>(w, stream);
    } else {
      launch<Element::f32, 8, 1, 4, false, true>(w, stream);
    }
    launch_sum_parts<Element::f32>(w.partial, w.split.parts, w.vectors, w.tokens, w.sum, stream);
  }
  check_cuda(cudaGetLastError(), "ethos_experts");
}

/// Variants of the width that the layer is tuned for.
template <bool kBackward>
void launch_tuned(const Walk& w, const EthosWalk& how, cudaStream_t stream) {
  constexpr Element kType = Element::bf16;
  if (how.rows == 8) {
    launch<kType, 2, 8, 4, kBackward>(w, stream);
  } else if (how.rows == 2) {
    launch<kType, 2, 2, 8, kBackward>(w, stream);
  } else if (how.blocks >= 6) {
    launch<kType, 2, 4, 6, kBackward>(w, stream);
  } else {
    launch<kType, 2, 4, 5, kBackward>(w, stream);
  }
}

template <bool kBackward>
void launch_walk(Walk w, Element element, const EthosWalk& how, cudaStream_t stream) {
  if (w.tokens == 0) return;
  w.sorted = how.sorted;
  w.split = walk_split(w.tokens, w.selections);
  if (kBackward || w.partial == nullptr) w.split = {1, w.selections};
  w.piece = 32;
  while (w.piece < kPiece && w.piece < w.split.each) w.piece *= 2;
  if (w.split.parts > 1) return launch_split(w, element, stream);
  const int lanes = (w.vectors + 31) / 32;
  if (element == Element::bf16) {
    if (lanes == 1) {
      launch<Element::bf16, 1, 8, 6, kBackward>(w, stream);
    } else if (lanes == 2) {
      launch_tuned<kBackward>(w, how, stream);
    } else {
      launch<Element::bf16, 4, 2, 4, kBackward>(w, stream);
    }
  } else if (lanes <= 2) {
    launch<Element::f32, 2, 4, 6, kBackward>(w, stream);
  } else if (lanes <= 4) {
    launch<Element::f32, 4, 2, 5, kBackward>(w, stream);
  } else {
    launch<Element::f32, 8, 1, 4, kBackward>(w, stream);
  }
  check_cuda(cudaGetLastError(), kBackward ? "ethos_experts_grad" : "ethos_experts");
}

std::int64_t cache_bytes() {
  int device = 0, bytes = 0;
  check_cuda(cudaGetDevice(&device), "ethos_experts");
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device), "ethos_experts");
  return bytes;
}

template <typename Params>
EthosWalk choose(const Params& p, const EthosWalk* walk) {
  if (walk != nullptr) return *walk;
  return ethos_walk(p.tokens, p.selections, p.experts, p.width, p.element, cache_bytes());
}

template <typename Params>
Walk common(const Params& p) {
  Walk w{};
  w.scores = p.scores;
  w.index = p.index;
  w.table = p.table;
  w.tokens = p.tokens;
  w.experts = p.experts;
  w.selections = static_cast<int>(p.selections);
  w.vectors = static_cast<int>(p.width * element_bytes(p.element) / 16);
  return w;
}

}  // namespace

void ethos_experts_cuda(const EthosExperts& p, Stream stream, const EthosWalk* walk) {
  Walk w = common(p);
  w.vector = p.xp;
  w.sum = p.acc;
  w.p = p.p;
  w.partial = p.partial;
  launch_walk<false>(w, p.element, choose(p, walk), static_cast<cudaStream_t>(stream));
}

void ethos_experts_grad_cuda(const EthosExpertsGrad& p, Stream stream, const EthosWalk* walk) {
  Walk w = common(p);
  w.vector = p.grad;
  w.sum = p.grad_xp;
  w.p = const_cast<float*>(p.p);  // read only
  w.grad_scores = p.grad_scores;
  w.weights = p.weights;
  launch_walk<true>(w, p.element, choose(p, walk), static_cast<cudaStream_t>(stream));
}

}  // namespace subspace::kernels
