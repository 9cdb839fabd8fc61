#include <cstdint>

#include "kernels/batch_norm.h"
#include "kernels/column_sums.h"
#include "kernels/cuda_check.cuh"
#include "kernels/warp_rows.cuh"

namespace subspace::kernels {
namespace {

// A block takes kGroups runs of columns, each of one vector (or one value where halves do not fill
// vectors), and a piece of the rows; kLanes rows of it at a time. A thread keeps to its columns.
constexpr int kGroups = 32, kLanes = 8;
constexpr std::int64_t kRunPieces = 528;  // where nothing is summed

__host__ __device__ std::int64_t width_of(const BatchNormHalves& p) { return p.heads * 2 * p.half; }

/// Runs of kValues values in memory.
template <Element kElement, int kValues>
struct Run {
  static constexpr int kBytes = 16 / Vector<kElement>::kValues * kValues;
  static __device__ void load(const void* at, std::int64_t value, float (&v)[kValues]) {
    const char* from = static_cast<const char*>(at) + value / kValues * kBytes;
    if constexpr (kValues > 1) {
      Vector<kElement>::unpack(__ldg(reinterpret_cast<const uint4*>(from)), v);
    } else if constexpr (kElement == Element::bf16) {
      v[0] = __uint_as_float(static_cast<unsigned>(*reinterpret_cast<const unsigned short*>(from))
                             << 16);
    } else {
      v[0] = *reinterpret_cast<const float*>(from);
    }
  }
  static __device__ void store(void* at, std::int64_t value, const float (&v)[kValues]) {
    char* to = static_cast<char*>(at) + value / kValues * kBytes;
    if constexpr (kValues > 1) {
      *reinterpret_cast<uint4*>(to) = Vector<kElement>::pack(v);
    } else if constexpr (kElement == Element::bf16) {
      *reinterpret_cast<__nv_bfloat16*>(to) = __float2bfloat16_rn(v[0]);
    } else {
      *reinterpret_cast<float*>(to) = v[0];
    }
  }
};

/// The columns of a thread: the first of them in x, and in its side's y.
struct Place {
  std::int64_t from, to;
  bool second;
};
__device__ Place place_of(const BatchNormHalves& p, std::int64_t column) {
  const std::int64_t half = column / p.half;
  return {column, half / 2 * p.half + column % p.half, half % 2 != 0};
}

template <int kValues>
__device__ void load_floats(const float* at, float (&v)[kValues]) {
#pragma unroll
  for (int i = 0; i < kValues; ++i) v[i] = at[i];
}

template <int kValues>
__device__ void load_scale(const BatchNormHalves& p, std::int64_t column, float (&v)[kValues]) {
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    v[i] = 1 / sqrtf(p.variance[column + i] + static_cast<float>(p.eps));
  }
}

/// The block's lanes of rows added up, in order, by the first lane.
template <int kValues>
__device__ void sum_lanes(float (&v)[kValues]) {
  __shared__ float shared[kLanes][kValues][kGroups];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kValues; ++i) shared[threadIdx.y][i][threadIdx.x] = v[i];
  __syncthreads();
  if (threadIdx.y != 0) return;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    for (int lane = 1; lane < kLanes; ++lane) v[i] += shared[lane][i][threadIdx.x];
  }
}

/// One row of `partial`: means less the first row, and sums of squares around them, of a piece of
/// the rows.
template <Element kElement, int kValues>
__global__ void __launch_bounds__(kGroups* kLanes)
    moments_of_pieces(ColumnMoments p, std::int64_t piece_rows) {
  using R = Run<kElement, kValues>;
  const std::int64_t column = (std::int64_t{blockIdx.x} * kGroups + threadIdx.x) * kValues;
  const std::int64_t begin = blockIdx.y * piece_rows, end = min(p.rows, begin + piece_rows);
  const bool mine = column < p.width;
  float start[kValues] = {}, sum[kValues] = {}, squares[kValues] = {};
  if (mine) {
    R::load(p.x, begin * p.width + column, start);
#pragma unroll 4
    for (std::int64_t row = begin + threadIdx.y; row < end; row += kLanes) {
      float x[kValues];
      R::load(p.x, row * p.width + column, x);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const float d = x[i] - start[i];
        sum[i] += d;
        squares[i] = fmaf(d, d, squares[i]);
      }
    }
  }
  sum_lanes(sum);
  sum_lanes(squares);
  if (!mine || threadIdx.y != 0) return;
  float* mean = p.partial + blockIdx.y * 2 * p.width + column;
  const auto count = static_cast<float>(end - begin);
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const float apart = sum[i] / count;
    mean[i] = apart;
    mean[p.width + i] = squares[i] - sum[i] * apart;
  }
}

constexpr int kJoinColumns = 32, kJoinLanes = 16;  // threads that share the pieces of a column

/// As batch_norm.cpp joins pieces.
template <Element kElement>
__global__ void join_moments(ColumnMoments p, std::int64_t pieces, std::int64_t piece_rows) {
  __shared__ double shared[3][kJoinLanes][kJoinColumns];
  const std::int64_t column = std::int64_t{blockIdx.x} * kJoinColumns + threadIdx.x;
  const bool mine = column < p.width;
  const auto value_at = [&](std::int64_t row) {
    float value[1];
    Run<kElement, 1>::load(p.x, row * p.width + column, value);
    return static_cast<double>(value[0]);
  };
  const double first = mine ? value_at(0) : 0;
  double sum = 0, around = 0, squares = 0;
  for (std::int64_t piece = threadIdx.y; mine && piece < pieces; piece += kJoinLanes) {
    const float* of = p.partial + piece * 2 * p.width + column;
    const auto count = static_cast<double>(min(p.rows - piece * piece_rows, piece_rows));
    const double d = value_at(piece * piece_rows) - first + of[0];
    sum += count * d;
    around += count * d * d;
    squares += of[p.width];
  }
  shared[0][threadIdx.y][threadIdx.x] = sum;
  shared[1][threadIdx.y][threadIdx.x] = around;
  shared[2][threadIdx.y][threadIdx.x] = squares;
  __syncthreads();
  if (threadIdx.y != 0 || !mine) return;
  for (int lane = 1; lane < kJoinLanes; ++lane) {
    sum += shared[0][lane][threadIdx.x];
    around += shared[1][lane][threadIdx.x];
    squares += shared[2][lane][threadIdx.x];
  }
  const auto rows = static_cast<double>(p.rows);
  const double apart = sum / rows;
  p.mean[column] = static_cast<float>(first + apart);
  const auto variance = static_cast<float>((squares + (around - sum * apart)) / rows);
  p.variance[column] = variance < 0 ? 0 : variance;
}

template <Element kElement, int kValues>
__global__ void __launch_bounds__(kGroups* kLanes)
    normalise(BatchNormHalves p, std::int64_t piece_rows) {
  using R = Run<kElement, kValues>;
  const std::int64_t column = (std::int64_t{blockIdx.x} * kGroups + threadIdx.x) * kValues;
  if (column >= width_of(p)) return;
  const Place at = place_of(p, column);
  void* out = at.second ? p.second : p.first;
  float mean[kValues], factor[kValues], weight[kValues], bias[kValues];
  load_floats(p.mean + column, mean);
  load_scale(p, column, factor);
  load_floats(p.weight + column, weight);
  load_floats(p.bias + column, bias);
#pragma unroll
  for (int i = 0; i < kValues; ++i) factor[i] *= weight[i];
  const std::int64_t begin = blockIdx.y * piece_rows, end = min(p.rows, begin + piece_rows);
#pragma unroll 4
  for (std::int64_t row = begin + threadIdx.y; row < end; row += kLanes) {
    float x[kValues];
    R::load(p.x, row * width_of(p) + at.from, x);
#pragma unroll
    for (int i = 0; i < kValues; ++i) x[i] = fmaf(x[i] - mean[i], factor[i], bias[i]);
    R::store(out, row * p.heads * p.half + at.to, x);
  }
}

/// One row of `partial`: sums of g and of g n over a piece of the rows.
template <Element kElement, int kValues>
__global__ void __launch_bounds__(kGroups* kLanes)
    sums_of_pieces(BatchNormHalvesGrad q, std::int64_t piece_rows) {
  using R = Run<kElement, kValues>;
  const BatchNormHalves& p = q.forward;
  const std::int64_t column = (std::int64_t{blockIdx.x} * kGroups + threadIdx.x) * kValues;
  const bool mine = column < width_of(p);
  float sum[kValues] = {}, along[kValues] = {};
  if (mine) {
    const Place at = place_of(p, column);
    const void* grad = at.second ? q.grad_second : q.grad_first;
    float mean[kValues];
    load_floats(p.mean + column, mean);
    const std::int64_t begin = blockIdx.y * piece_rows, end = min(p.rows, begin + piece_rows);
#pragma unroll 2
    for (std::int64_t row = begin + threadIdx.y; row < end; row += kLanes) {
      float g[kValues], x[kValues];
      R::load(grad, row * p.heads * p.half + at.to, g);
      R::load(p.x, row * width_of(p) + at.from, x);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        sum[i] += g[i];
        along[i] = fmaf(g[i], x[i] - mean[i], along[i]);
      }
    }
  }
  sum_lanes(sum);
  sum_lanes(along);
  if (!mine || threadIdx.y != 0) return;
  float scale[kValues];
  load_scale(p, column, scale);
  float* out = q.partial + blockIdx.y * 2 * width_of(p) + column;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    out[i] = sum[i];
    out[width_of(p) + i] = along[i] * scale[i];
  }
}

template <Element kElement, int kValues>
__global__ void __launch_bounds__(kGroups* kLanes)
    backward(BatchNormHalvesGrad q, std::int64_t piece_rows) {
  using R = Run<kElement, kValues>;
  const BatchNormHalves& p = q.forward;
  const std::int64_t column = (std::int64_t{blockIdx.x} * kGroups + threadIdx.x) * kValues;
  if (column >= width_of(p)) return;
  const Place at = place_of(p, column);
  const void* grad = at.second ? q.grad_second : q.grad_first;
  const float share = q.of_batch ? 1 / static_cast<float>(p.rows) : 0;
  float mean[kValues], factor[kValues], level[kValues], slope[kValues], weight[kValues];
  load_floats(p.mean + column, mean);
  load_scale(p, column, factor);
  load_floats(p.weight + column, weight);
  load_floats(q.grad_bias + column, level);
  load_floats(q.grad_weight + column, slope);
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    level[i] *= share;
    slope[i] *= share * factor[i];
    factor[i] *= weight[i];
  }
  const std::int64_t begin = blockIdx.y * piece_rows, end = min(p.rows, begin + piece_rows);
#pragma unroll 2
  for (std::int64_t row = begin + threadIdx.y; row < end; row += kLanes) {
    float g[kValues], x[kValues];
    R::load(grad, row * p.heads * p.half + at.to, g);
    R::load(p.x, row * width_of(p) + at.from, x);
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      x[i] = factor[i] * (g[i] - fmaf(x[i] - mean[i], slope[i], level[i]));
    }
    R::store(q.grad_x, row * width_of(p) + at.from, x);
  }
}

/// A block for each run of columns and piece of the rows.
struct Launch {
  RowPieces cut;
  dim3 grid;
  Launch(const RowPieces& pieces, std::int64_t width, int values)
      : cut(pieces),
        grid(static_cast<unsigned>((width + kGroups * values - 1) / (kGroups * values)),
             static_cast<unsigned>(cut.pieces)) {}
};
const dim3 kBlock(kGroups, kLanes);

template <Element kElement, int kValues>
void run(const ColumnMoments& p, cudaStream_t stream) {
  const Launch launch(batch_norm_pieces(p.rows), p.width, kValues);
  moments_of_pieces<kElement, kValues><<<launch.grid, kBlock, 0, stream>>>(p, launch.cut.rows);
}

template <Element kElement, int kValues>
void run(const BatchNormHalves& p, cudaStream_t stream) {
  const Launch launch(row_pieces(p.rows, kRunPieces), width_of(p), kValues);
  normalise<kElement, kValues><<<launch.grid, kBlock, 0, stream>>>(p, launch.cut.rows);
}

template <Element kElement, int kValues>
void run(const BatchNormHalvesGrad& q, cudaStream_t stream) {
  const std::int64_t rows = q.forward.rows, width = width_of(q.forward);
  const Launch sums(batch_norm_pieces(rows), width, kValues);
  sums_of_pieces<kElement, kValues><<<sums.grid, kBlock, 0, stream>>>(q, sums.cut.rows);
  add_column_sums_cuda(q.partial, sums.cut.pieces, 2 * width, width, q.grad_bias, stream);
  add_column_sums_cuda(q.partial + width, sums.cut.pieces, 2 * width, width, q.grad_weight, stream);
  const Launch launch(row_pieces(rows, kRunPieces), width, kValues);
  backward<kElement, kValues><<<launch.grid, kBlock, 0, stream>>>(q, launch.cut.rows);
}

/// Whole vectors where they fill what lies side by side.
template <typename Params>
void choose(const Params& p, Element element, std::int64_t together, cudaStream_t stream) {
  constexpr int kFloats = Vector<Element::f32>::kValues, kHalves = Vector<Element::bf16>::kValues;
  if (element == Element::f32) {
    together % kFloats == 0 ? run<Element::f32, kFloats>(p, stream)
                            : run<Element::f32, 1>(p, stream);
  } else {
    together % kHalves == 0 ? run<Element::bf16, kHalves>(p, stream)
                            : run<Element::bf16, 1>(p, stream);
  }
}

void fill(float* at, std::int64_t count, int byte, cudaStream_t stream, const char* name) {
  check_cuda(cudaMemsetAsync(at, byte, static_cast<std::size_t>(count) * sizeof(float), stream),
             name);
}

}  // namespace

void column_moments_cuda(const ColumnMoments& p, Stream stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (p.width == 0) return;
  if (p.rows == 0) {
    fill(p.mean, p.width, 0xff, on, "column_moments");
    fill(p.variance, p.width, 0xff, on, "column_moments");
    return;
  }
  choose(p, p.element, p.width, on);
  const RowPieces cut = batch_norm_pieces(p.rows);
  const auto blocks = static_cast<unsigned>((p.width + kJoinColumns - 1) / kJoinColumns);
  const dim3 threads(kJoinColumns, kJoinLanes);
  if (p.element == Element::f32) {
    join_moments<Element::f32><<<blocks, threads, 0, on>>>(p, cut.pieces, cut.rows);
  } else {
    join_moments<Element::bf16><<<blocks, threads, 0, on>>>(p, cut.pieces, cut.rows);
  }
  check_cuda(cudaGetLastError(), "column_moments");
}

void batch_norm_halves_cuda(const BatchNormHalves& p, Stream stream) {
  if (p.rows == 0 || width_of(p) == 0) return;
  choose(p, p.element, p.half, static_cast<cudaStream_t>(stream));
  check_cuda(cudaGetLastError(), "batch_norm_halves");
}

void batch_norm_halves_grad_cuda(const BatchNormHalvesGrad& p, Stream stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (width_of(p.forward) == 0) return;
  fill(p.grad_bias, width_of(p.forward), 0, on, "batch_norm_halves_grad");
  fill(p.grad_weight, width_of(p.forward), 0, on, "batch_norm_halves_grad");
  if (p.forward.rows == 0) return;
  choose(p, p.forward.element, p.forward.half, on);
  check_cuda(cudaGetLastError(), "batch_norm_halves_grad");
}

}  // namespace subspace::kernels
