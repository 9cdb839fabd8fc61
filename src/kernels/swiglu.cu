#include <cstdint>

#include "kernels/column_sums.h"
#include "kernels/cuda_check.cuh"
#include "kernels/swiglu.h"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

constexpr int kThreads = 128;
constexpr std::int64_t kPieces = 528;  // as swiglu.cpp has it

template <Element kElement>
struct Pair {
  float a[Vector<kElement>::kValues], b[Vector<kElement>::kValues];
};

/// Gate and value of vector `at` of a row of `up`, whose halves have `vectors` vectors each.
template <Element kElement>
__device__ Pair<kElement> load_pair(const void* up, std::int64_t row, int vectors, int at) {
  Pair<kElement> out;
  const auto* start = static_cast<const uint4*>(up) + row * 2 * vectors;
  Vector<kElement>::unpack(start[at], out.a);
  Vector<kElement>::unpack(start[vectors + at], out.b);
  return out;
}

template <Element kElement>
__device__ void add(Pair<kElement>& to, const Pair<kElement>& what) {
#pragma unroll
  for (int i = 0; i < Vector<kElement>::kValues; ++i) {
    to.a[i] += what.a[i];
    to.b[i] += what.b[i];
  }
}

__device__ float sigmoid_of(float a) { return 1 / (1 + __expf(-a)); }

/// A thread a vector of y.
template <Element kElement>
__global__ void __launch_bounds__(kThreads) forward(Swiglu p) {
  constexpr int kValues = Vector<kElement>::kValues;
  const int vectors = static_cast<int>(p.width) / kValues;
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t row = index / vectors;
  const int at = static_cast<int>(index % vectors);
  if (row >= p.rows) return;
  Pair<kElement> up = load_pair<kElement>(p.up, row, vectors, at);
  if (p.bias != nullptr) add(up, load_pair<kElement>(p.bias, 0, vectors, at));
  float y[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) y[i] = up.a[i] * sigmoid_of(up.a[i]) * up.b[i];
  static_cast<uint4*>(p.y)[row * vectors + at] = Vector<kElement>::pack(y);
}

/// A thread a column vector of a piece's rows, kAhead of them in flight.
template <Element kElement>
__global__ void __launch_bounds__(kThreads) backward(SwigluGrad p, std::int64_t piece_rows) {
  using Type = Vector<kElement>;
  constexpr int kValues = Type::kValues;
  const int vectors = static_cast<int>(p.width) / kValues;
  const int at = blockIdx.y * kThreads + threadIdx.x;
  if (at >= vectors) return;
  Pair<kElement> bias = {}, sums = {};
  if (p.bias != nullptr) bias = load_pair<kElement>(p.bias, 0, vectors, at);
  const std::int64_t begin = blockIdx.x * piece_rows;
  const std::int64_t end = min(p.rows, begin + piece_rows);
#pragma unroll 4
  for (std::int64_t row = begin; row < end; ++row) {
    Pair<kElement> up = load_pair<kElement>(p.up, row, vectors, at);
    float g[kValues];
    Type::unpack(static_cast<const uint4*>(p.grad)[row * vectors + at], g);
    add(up, bias);
    Pair<kElement> grad;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const float a = up.a[i], sigmoid = sigmoid_of(a);
      grad.a[i] = g[i] * up.b[i] * sigmoid * (1 + a * (1 - sigmoid));
      grad.b[i] = g[i] * a * sigmoid;
    }
    add(sums, grad);
    auto* out = static_cast<uint4*>(p.grad_up) + row * 2 * vectors;
    out[at] = Type::pack(grad.a);
    out[vectors + at] = Type::pack(grad.b);
  }
  if (p.grad_bias == nullptr) return;
  float* out = p.partial + blockIdx.x * 2 * p.width + at * kValues;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    out[i] = sums.a[i];
    out[p.width + i] = sums.b[i];
  }
}

template <Element kElement>
void launch(const Swiglu& p, cudaStream_t stream) {
  const std::int64_t threads = p.rows * (p.width / Vector<kElement>::kValues);
  forward<kElement>
      <<<static_cast<unsigned>((threads + kThreads - 1) / kThreads), kThreads, 0, stream>>>(p);
}

template <Element kElement>
void launch(const SwigluGrad& p, cudaStream_t stream) {
  const RowPieces cut = row_pieces(p.rows, kPieces);
  const std::int64_t vectors = p.width / Vector<kElement>::kValues;
  const dim3 grid(static_cast<unsigned>(cut.pieces),
                  static_cast<unsigned>((vectors + kThreads - 1) / kThreads));
  backward<kElement><<<grid, kThreads, 0, stream>>>(p, cut.rows);
}

template <typename Params>
void dispatch(const Params& p, Stream stream, const char* name) {
  auto* queue = static_cast<cudaStream_t>(stream);
  p.element == Element::f32 ? launch<Element::f32>(p, queue) : launch<Element::bf16>(p, queue);
  check_cuda(cudaGetLastError(), name);
}

}  // namespace

void swiglu_cuda(const Swiglu& p, Stream stream) {
  if (p.rows == 0) return;
  dispatch(p, stream, "swiglu");
}

void swiglu_grad_cuda(const SwigluGrad& p, Stream stream) {
  if (p.rows == 0) return;
  dispatch(p, stream, "swiglu_grad");
  if (p.grad_bias == nullptr) return;
  const std::int64_t pieces = row_pieces(p.rows, kPieces).pieces;
  add_column_sums_cuda(p.partial, pieces, 2 * p.width, 2 * p.width, p.grad_bias, stream);
}

}  // namespace subspace::kernels
