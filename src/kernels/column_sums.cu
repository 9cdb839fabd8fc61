#include "kernels/column_sums.h"
#include "kernels/cuda_check.cuh"

namespace subspace::kernels {
namespace {

constexpr int kColumns = 32;
constexpr int kLanes = 32;  // threads that share the pieces of a column

__global__ void add_sums(const float* partial, std::int64_t pieces, std::int64_t stride,
                         std::int64_t width, float* out) {
  __shared__ float sums[kLanes][kColumns];
  const std::int64_t column = std::int64_t{blockIdx.x} * kColumns + threadIdx.x;
  float sum = 0;
  if (column < width) {
#pragma unroll 4
    for (std::int64_t piece = threadIdx.y; piece < pieces; piece += kLanes) {
      sum += partial[piece * stride + column];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int i = 1; i < kLanes; ++i) sum += sums[i][threadIdx.x];
  out[column] += sum;
}

}  // namespace

void add_column_sums_cuda(const float* partial, std::int64_t pieces, std::int64_t stride,
                          std::int64_t width, float* out, Stream stream) {
  if (width == 0 || pieces == 0) return;
  const auto blocks = static_cast<unsigned>((width + kColumns - 1) / kColumns);
  add_sums<<<blocks, dim3(kColumns, kLanes), 0, static_cast<cudaStream_t>(stream)>>>(
      partial, pieces, stride, width, out);
  check_cuda(cudaGetLastError(), "add_column_sums");
}

}  // namespace subspace::kernels
