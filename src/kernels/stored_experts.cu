#include <algorithm>
#include <cstdint>

#include "kernels/cuda_check.cuh"
#include "kernels/gelu.h"
#include "kernels/part_sums.cuh"
#include "kernels/stored_experts.h"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 4;     // rows of a dot product that a warp has in flight
constexpr int kVectors = 2;  // vectors of each of them
constexpr int kAhead = 8;    // rows of the sum that a thread has in flight

/// Dot products of `vector` with rows of `first`, weights, then the sum of rows of `second`.
struct Walk {
  const void* vector;
  const float* scores;
  const std::int64_t* index;
  const void* first;
  const void* second;
  uint4* sum;
  float* p;
  float* grad_scores;
  RowWeights* weights;
  std::int64_t experts;
  int selections;  // of a token; within a block, of its part
  int vectors;     // 16-byte vectors of a row
  float* partial;  // of the parts of a token, if it is split
  WalkSplit split;
};

/// Shared memory: the token's vector, then the weight and the row of each selection, then the sums
/// of the groups of threads that share a narrow row's selections.
struct Shared {
  uint4* vector;
  float* weight;
  unsigned* row;
  float* sums;
  __device__ explicit Shared(const Walk& w) {
    extern __shared__ uint4 shared[];
    vector = shared;
    weight = reinterpret_cast<float*>(shared + w.vectors);
    row = reinterpret_cast<unsigned*>(weight + w.selections);
    sums = reinterpret_cast<float*>(row + w.selections);
  }
};

/// Groups of threads that share the selections of a row of few vectors.
__host__ __device__ int groups_for(int vectors) {
  return vectors <= 32 ? kWarps : vectors <= 64 ? kWarps / 2 : 1;
}

/// The weight of a selection from its dot product; writes down what the backward pass needs.
template <bool kBackward>
__device__ float weigh(const Walk& w, std::int64_t at, float dot) {
  if constexpr (kBackward) {
    const Gelu<float> gelu = gelu_fast(w.p[at]);
    const float score = w.scores[at];
    const float input = gelu.slope * score * dot;
    w.grad_scores[at] = gelu.value * dot;
    w.weights[at] = {gelu.value * score, input};
    return input;
  } else {
    w.p[at] = dot;
    return gelu_fast(dot).value * w.scores[at];
  }
}

template <Element kElement, bool kBackward>
__device__ void make_weights(const Walk& w, const Shared& s, std::int64_t first) {
  using Type = Vector<kElement>;
  const int lane = threadIdx.x % 32;
  constexpr int kSpan = 32 / kRows;
  for (int base = threadIdx.x / 32 * kRows; base < w.selections; base += kWarps * kRows) {
    float dots[kRows] = {};
    for (int start = 0; start < w.vectors; start += 32 * kVectors) {
      uint4 raw[kRows][kVectors];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const std::int64_t row = s.row[min(base + r, w.selections - 1)];
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          const int column = start + v * 32 + lane;
          raw[r][v] = column < w.vectors
                          ? load_vector(w.first, row == 0xffffffff ? 0 : row, w.vectors, column)
                          : uint4{};
        }
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int column = start + v * 32 + lane;
        float x[Type::kValues];
        Type::unpack(column < w.vectors ? s.vector[column] : uint4{}, x);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float h[Type::kValues];
          Type::unpack(raw[r][v], h);
#pragma unroll
          for (int i = 0; i < Type::kValues; ++i) dots[r] = fmaf(x[i], h[i], dots[r]);
        }
      }
    }
    float dot = sum_rows<kRows>(dots);
    const int mine = base + lane / kSpan;
    if (mine < w.selections && lane % kSpan == 0) {
      if (s.row[mine] == 0xffffffff) dot = __int_as_float(0x7fc00000);
      s.weight[mine] = weigh<kBackward>(w, first + mine, dot);
    }
  }
}

/// The sum over every step-th selection from `from` on, of vector `column`.
template <Element kElement>
__device__ void add_rows(const Walk& w, const Shared& s, int from, int step, int column,
                         float (&sum)[Vector<kElement>::kValues]) {
  using Type = Vector<kElement>;
  for (int base = from; base < w.selections; base += kAhead * step) {
    uint4 raw[kAhead];
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
      const std::int64_t row = s.row[min(base + r * step, w.selections - 1)];
      raw[r] = load_vector(w.second, row == 0xffffffff ? 0 : row, w.vectors, column);
    }
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
      if (base + r * step >= w.selections) break;
      const float a = s.weight[base + r * step];
      float h[Type::kValues];
      Type::unpack(raw[r], h);
#pragma unroll
      for (int i = 0; i < Type::kValues; ++i) sum[i] = fmaf(a, h[i], sum[i]);
    }
  }
}

/// The block's sum of vector `column`: of its token, or of its part of one.
template <Element kElement, bool kSplit>
__device__ void put_sum(const Walk& w, int column, const float (&sum)[Vector<kElement>::kValues]) {
  using Type = Vector<kElement>;
  const std::int64_t at = std::int64_t{blockIdx.x} * w.vectors + column;
  if constexpr (kSplit) {
#pragma unroll
    for (int i = 0; i < Type::kValues; ++i) w.partial[at * Type::kValues + i] = sum[i];
  } else {
    w.sum[at] = Type::pack(sum);
  }
}

template <Element kElement, bool kBackward, bool kSplit>
__global__ void __launch_bounds__(kThreads, 6) walk_tokens(Walk w) {
  using Type = Vector<kElement>;
  const std::int64_t token = kSplit ? blockIdx.x / w.split.parts : blockIdx.x;
  std::int64_t first = token * w.selections;
  if constexpr (kSplit) {
    const int begin = static_cast<int>(blockIdx.x % w.split.parts * w.split.each);
    first += begin;
    w.selections = min(w.selections - begin, static_cast<int>(w.split.each));
  }
  const Shared s(w);
  for (int v = threadIdx.x; v < w.vectors; v += kThreads) {
    s.vector[v] = load_vector(w.vector, token, w.vectors, v);
  }
  for (int j = threadIdx.x; j < w.selections; j += kThreads) {
    const std::int64_t expert = w.index[first + j];
    s.row[j] = expert >= 0 && expert < w.experts ? static_cast<unsigned>(expert) : 0xffffffffu;
  }
  __syncthreads();
  make_weights<kElement, kBackward>(w, s, first);
  __syncthreads();

  const int groups = groups_for(w.vectors);
  if (groups == 1) {
    for (int v = threadIdx.x; v < w.vectors; v += kThreads) {
      float sum[Type::kValues] = {};
      add_rows<kElement>(w, s, 0, 1, v, sum);
      put_sum<kElement, kSplit>(w, v, sum);
    }
    return;
  }
  const int span = kThreads / groups;
  const int group = threadIdx.x / span, column = threadIdx.x % span;
  if (column < w.vectors) {
    float sum[Type::kValues] = {};
    add_rows<kElement>(w, s, group, groups, column, sum);
#pragma unroll
    for (int i = 0; i < Type::kValues; ++i) {
      s.sums[(group * w.vectors + column) * Type::kValues + i] = sum[i];
    }
  }
  __syncthreads();
  if (group == 0 && column < w.vectors) {
    float sum[Type::kValues] = {};
    for (int g = 0; g < groups; ++g) {
#pragma unroll
      for (int i = 0; i < Type::kValues; ++i) {
        sum[i] += s.sums[(g * w.vectors + column) * Type::kValues + i];
      }
    }
    put_sum<kElement, kSplit>(w, column, sum);
  }
}

template <Element kElement, bool kBackward, bool kSplit = false>
void launch(const Walk& w, std::int64_t tokens, cudaStream_t stream) {
  const int groups = groups_for(w.vectors);
  const int sums = groups == 1 ? 0 : groups * w.vectors * Vector<kElement>::kValues * 4;
  const int selections = kSplit ? static_cast<int>(w.split.each) : w.selections;
  const int bytes = 16 * w.vectors + 8 * selections + sums;
  const char* name = kBackward ? "stored_experts_grad" : "stored_experts";
  auto* kernel = walk_tokens<kElement, kBackward, kSplit>;
  if (bytes > 48 * 1024) allow_shared_memory(kernel, name);
  const std::int64_t blocks = tokens * (kSplit ? w.split.parts : 1);
  kernel<<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(w);
  check_cuda(cudaGetLastError(), name);
}

/// Forward: few tokens in parts.
template <Element kElement>
void launch_forward(Walk w, const StoredExperts& p, cudaStream_t stream) {
  w.split = walk_split(p.tokens, p.selections);
  if (p.partial == nullptr || w.split.parts == 1)
    return launch<kElement, false>(w, p.tokens, stream);
  w.partial = p.partial;
  launch<kElement, false, true>(w, p.tokens, stream);
  launch_sum_parts<kElement>(w.partial, w.split.parts, w.vectors, p.tokens, p.y, stream);
  check_cuda(cudaGetLastError(), "stored_experts");
}

template <typename Params>
Walk common(const Params& p) {
  Walk w{};
  w.scores = p.scores;
  w.index = p.index;
  w.experts = p.experts;
  w.selections = static_cast<int>(p.selections);
  w.vectors = static_cast<int>(p.width * element_bytes(p.element) / 16);
  return w;
}

}  // namespace

void stored_experts_cuda(const StoredExperts& p, Stream stream) {
  if (p.tokens == 0) return;
  Walk w = common(p);
  w.vector = p.x;
  w.first = p.down;
  w.second = p.up;
  w.sum = static_cast<uint4*>(p.y);
  w.p = p.p;
  auto* queue = static_cast<cudaStream_t>(stream);
  if (p.element == Element::f32) {
    launch_forward<Element::f32>(w, p, queue);
  } else {
    launch_forward<Element::bf16>(w, p, queue);
  }
}

void stored_experts_grad_cuda(const StoredExpertsGrad& p, Stream stream) {
  if (p.tokens == 0) return;
  Walk w = common(p);
  w.vector = p.grad;
  w.first = p.up;
  w.second = p.down;
  w.sum = static_cast<uint4*>(p.grad_x);
  w.p = const_cast<float*>(p.p);  // read only
  w.grad_scores = p.grad_scores;
  w.weights = p.weights;
  auto* queue = static_cast<cudaStream_t>(stream);
  if (p.element == Element::f32) {
    launch<Element::f32, true>(w, p.tokens, queue);
  } else {
    launch<Element::bf16, true>(w, p.tokens, queue);
  }
}

}  // namespace subspace::kernels
