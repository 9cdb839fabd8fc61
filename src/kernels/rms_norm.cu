#include <cstdint>

#include "kernels/column_sums.h"
#include "kernels/cuda_check.cuh"
#include "kernels/rms_norm.h"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

constexpr int kThreads = 128;
constexpr std::int64_t kPieces = 1056;  // as rms_norm.cpp has it

/// Sum over the kLanes lanes that share a row.
template <int kLanes>
__device__ float lanes_sum(float value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, offset);
  }
  return value;
}

template <Element kElement>
__device__ void load(const void* at, std::int64_t begin, int vector,
                     float (&v)[Vector<kElement>::kValues]) {
  const char* start = static_cast<const char*>(at) + begin * (16 / Vector<kElement>::kValues);
  Vector<kElement>::unpack(reinterpret_cast<const uint4*>(start)[vector], v);
}

template <Element kElement>
__device__ void store(void* at, std::int64_t begin, int vector, const float* v) {
  char* start = static_cast<char*>(at) + begin * (16 / Vector<kElement>::kValues);
  reinterpret_cast<uint4*>(start)[vector] = Vector<kElement>::pack(v);
}

/// kLanes lanes of a warp a row, kVectors 16-byte vectors a lane.
template <Element kElement, int kLanes, int kVectors>
__global__ void __launch_bounds__(kThreads) forward(RmsNorm p) {
  using Type = Vector<kElement>;
  constexpr int kValues = Type::kValues;
  const int lane = threadIdx.x % kLanes;
  const int vectors = static_cast<int>(p.width) / kValues;
  const std::int64_t step = std::int64_t{gridDim.x} * (kThreads / kLanes);
  // All lanes of a warp turn as often: those without a row take part in the sums.
  for (std::int64_t first = std::int64_t{blockIdx.x} * (kThreads / kLanes); first < p.rows;
       first += step) {
    const std::int64_t row = first + threadIdx.x / kLanes;
    const bool mine = row < p.rows;
    float s[kVectors][kValues];
    float squares = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = v * kLanes + lane;
#pragma unroll
      for (int i = 0; i < kValues; ++i) s[v][i] = 0;
      if (!mine || at >= vectors) continue;
      load<kElement>(p.x, row * p.x_stride, at, s[v]);
      if (p.delta != nullptr) {
        float delta[kValues], bias[kValues] = {};
        load<kElement>(p.delta, row * p.width, at, delta);
        if (p.bias != nullptr) load<kElement>(p.bias, 0, at, bias);
#pragma unroll
        for (int i = 0; i < kValues; ++i) s[v][i] += delta[i] + bias[i];
        const uint4 rounded = Type::pack(s[v]);
        Type::unpack(rounded, s[v]);
        store<kElement>(p.sum, row * p.width, at, s[v]);
      }
#pragma unroll
      for (int i = 0; i < kValues; ++i) squares = fmaf(s[v][i], s[v][i], squares);
    }
    squares = lanes_sum<kLanes>(squares);
    const float mean = squares / static_cast<float>(p.width);
    const float r = 1 / sqrtf(mean + static_cast<float>(p.eps));
    if (mine && lane == 0) p.scale[row] = r;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = v * kLanes + lane;
      if (!mine || at >= vectors) continue;
      float weight[kValues];
      load<kElement>(p.weight, 0, at, weight);
#pragma unroll
      for (int i = 0; i < kValues; ++i) s[v][i] *= r * weight[i];
      store<kElement>(p.y, row * p.width, at, s[v]);
    }
  }
}

/// A block a piece of the rows; sums over its rows stay in registers, then one row of `partial`.
template <Element kElement, int kLanes, int kVectors>
__global__ void __launch_bounds__(kThreads) backward(RmsNormGrad p, std::int64_t piece_rows) {
  using Type = Vector<kElement>;
  constexpr int kValues = Type::kValues;
  constexpr int kRows = kThreads / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int vectors = static_cast<int>(p.width) / kValues;
  float weight_sum[kVectors][kValues] = {}, bias_sum[kVectors][kValues] = {};
  const std::int64_t begin = blockIdx.x * piece_rows;
  const std::int64_t end = min(p.rows, begin + piece_rows);
  for (std::int64_t first = begin; first < end; first += kRows) {
    const std::int64_t row = first + threadIdx.x / kLanes;
    const bool mine = row < end;
    const float r = mine ? p.scale[row] : 0;
    float g[kVectors][kValues], s[kVectors][kValues];
    float dot = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = v * kLanes + lane;
#pragma unroll
      for (int i = 0; i < kValues; ++i) g[v][i] = s[v][i] = 0;
      if (!mine || at >= vectors) continue;
      float weight[kValues];
      load<kElement>(p.grad, row * p.width, at, g[v]);
      load<kElement>(p.s, row * p.s_stride, at, s[v]);
      load<kElement>(p.weight, 0, at, weight);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        weight_sum[v][i] = fmaf(g[v][i] * r, s[v][i], weight_sum[v][i]);
        g[v][i] *= weight[i];
        dot = fmaf(g[v][i], s[v][i], dot);
      }
    }
    const float mean = r * r * lanes_sum<kLanes>(dot) / static_cast<float>(p.width);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = v * kLanes + lane;
      if (!mine || at >= vectors) continue;
      float sum[kValues] = {};
      if (p.grad_sum != nullptr) load<kElement>(p.grad_sum, row * p.width, at, sum);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        sum[i] += r * (g[v][i] - s[v][i] * mean);
        bias_sum[v][i] += sum[i];
      }
      store<kElement>(p.grad_s, row * p.grad_stride, at, sum);
    }
  }
  // The rows of the block that went on side by side, one behind the other.
  extern __shared__ float shared[];
  float* out = p.partial + blockIdx.x * 2 * p.width;
  const int width = static_cast<int>(p.width);
  for (int part = 0; part < 2; ++part) {
    for (int turn = 0; turn < kRows; ++turn) {
      if (threadIdx.x / kLanes == turn) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          const int at = v * kLanes + lane;
          if (at >= vectors) continue;
#pragma unroll
          for (int i = 0; i < kValues; ++i) {
            const float mine = part == 0 ? weight_sum[v][i] : bias_sum[v][i];
            float& sum = shared[at * kValues + i];
            sum = turn == 0 ? mine : sum + mine;
          }
        }
      }
      __syncthreads();
    }
    for (int i = threadIdx.x; i < width; i += kThreads) out[part * width + i] = shared[i];
    __syncthreads();
  }
}

template <Element kElement, int kLanes, int kVectors>
void launch(const RmsNorm& p, cudaStream_t stream) {
  constexpr std::int64_t kRows = kThreads / kLanes;
  const std::int64_t blocks = min((p.rows + kRows - 1) / kRows, std::int64_t{132 * 64});
  forward<kElement, kLanes, kVectors><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
}

template <Element kElement, int kLanes, int kVectors>
void launch(const RmsNormGrad& p, cudaStream_t stream) {
  const RowPieces cut = row_pieces(p.rows, kPieces);
  backward<kElement, kLanes, kVectors>
      <<<static_cast<unsigned>(cut.pieces), kThreads, p.width * sizeof(float), stream>>>(p,
                                                                                         cut.rows);
}

/// The instance for the row's number of vectors.
template <Element kElement, typename Params>
void choose(const Params& p, cudaStream_t stream) {
  const std::int64_t vectors = p.width / Vector<kElement>::kValues;
  if (vectors <= 4) return launch<kElement, 4, 1>(p, stream);
  if (vectors <= 8) return launch<kElement, 8, 1>(p, stream);
  if (vectors <= 16) return launch<kElement, 16, 1>(p, stream);
  if (vectors <= 32) return launch<kElement, 32, 1>(p, stream);
  if (vectors <= 64) return launch<kElement, 32, 2>(p, stream);
  if (vectors <= 128) return launch<kElement, 32, 4>(p, stream);
  if (vectors <= 256) return launch<kElement, 32, 8>(p, stream);
  return launch<kElement, 32, 16>(p, stream);
}

template <typename Params>
void dispatch(const Params& p, cudaStream_t stream, const char* name) {
  if (p.element == Element::f32) {
    choose<Element::f32>(p, stream);
  } else {
    choose<Element::bf16>(p, stream);
  }
  check_cuda(cudaGetLastError(), name);
}

}  // namespace

void rms_norm_cuda(const RmsNorm& p, Stream stream) {
  if (p.rows == 0) return;
  dispatch(p, static_cast<cudaStream_t>(stream), "rms_norm");
}

void rms_norm_grad_cuda(const RmsNormGrad& p, Stream stream) {
  if (p.rows == 0) return;
  dispatch(p, static_cast<cudaStream_t>(stream), "rms_norm_grad");
  const std::int64_t pieces = row_pieces(p.rows, kPieces).pieces;
  add_column_sums_cuda(p.partial, pieces, 2 * p.width, p.width, p.grad_weight, stream);
  if (p.grad_bias == nullptr) return;
  add_column_sums_cuda(p.partial + p.width, pieces, 2 * p.width, p.width, p.grad_bias, stream);
}

}  // namespace subspace::kernels
