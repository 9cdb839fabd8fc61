#include <cstdint>

#include "kernels/block_reduce.cuh"
#include "kernels/cuda_check.cuh"
#include "kernels/psd_factor.h"

namespace subspace::kernels {
namespace {

constexpr int kThreads = 512;

/// One block a matrix, all of it in shared memory; right-looking, so that what is left of G is
/// there.
__global__ void __launch_bounds__(kThreads, 1)
    factor(const double* __restrict__ all, double* __restrict__ out, int n) {
  extern __shared__ double shared[];
  double* g = shared;       // [n, n] what is left
  double* row = g + n * n;  // the new row of R
  double* left = row + n;   // diagonal that is left; -1 once eliminated
  __shared__ double reduced[32];
  __shared__ int where[32];
  const int rows = (n + 31) / 32 * 32, parts = kThreads / rows;
  const int i = threadIdx.x % rows, part = threadIdx.x / rows;
  const bool works = i < n && part < parts;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * n * n;
  for (int index = threadIdx.x; index < n * n; index += kThreads) {
    const int r = index / n, c = index % n;
    if (c <= r) g[r * n + c] = g[c * n + r] = all[at + index];
  }
  __syncthreads();
  if (threadIdx.x < n) left[threadIdx.x] = g[threadIdx.x * n + threadIdx.x];
  __syncthreads();
  const double largest = block_max(threadIdx.x < n ? left[threadIdx.x] : -1, reduced);
  const double floor = n * 2.220446049250313e-16 * largest;

  int k = 0;
  for (; k < n; ++k) {
    int pivot = 0;
    const double best =
        block_argmax(threadIdx.x < n ? left[threadIdx.x] : -2, reduced, where, &pivot);
    if (!(best > floor) || !(best > 0)) break;
    const double scale = 1 / sqrt(best);
    if (threadIdx.x < n) {
      const bool done = left[threadIdx.x] == -1;
      const double r = threadIdx.x == pivot ? sqrt(best)
                       : done               ? 0
                                            : g[pivot * n + threadIdx.x] * scale;
      row[threadIdx.x] = r;
      out[at + k * n + threadIdx.x] = r;
    }
    __syncthreads();
    if (works) {
      const double ri = row[i];
#pragma unroll 4
      for (int j = part; j < n; j += parts) g[j * n + i] -= row[j] * ri;
    }
    if (threadIdx.x < n && left[threadIdx.x] != -1) {
      const double r = row[threadIdx.x];
      left[threadIdx.x] = threadIdx.x == pivot ? -1 : fmax(left[threadIdx.x] - r * r, 0.0);
    }
    __syncthreads();
  }
  for (int index = k * n + threadIdx.x; index < n * n; index += kThreads) out[at + index] = 0;
}

std::int64_t shared_bytes(std::int64_t n) { return 8 * (n * n + 2 * n); }

}  // namespace

void psd_factor_cuda(const PsdFactor& p, Stream stream) {
  if (p.batch == 0 || p.n == 0) return;
  const auto bytes = static_cast<int>(shared_bytes(p.n));
  allow_shared_memory(factor, "psd_factor");
  factor<<<static_cast<unsigned>(p.batch), kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(
      p.g, p.r, static_cast<int>(p.n));
  check_cuda(cudaGetLastError(), "psd_factor");
}

}  // namespace subspace::kernels
