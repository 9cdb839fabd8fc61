#include <cstdint>

#include "kernels/block_reduce.cuh"
#include "kernels/cuda_check.cuh"
#include "kernels/symmetric_eigenvalues.h"

namespace subspace::kernels {
namespace {

constexpr int kThreads = 512;

/// How a block's threads share a matrix of n rows: `rows` consecutive threads take one entry each
/// of a column (neighbours in memory, so no bank conflicts), and `parts` such groups split the
/// columns.
struct Split {
  int rows, parts;
  __host__ __device__ explicit Split(int n) : rows((n + 31) / 32 * 32), parts(kThreads / rows) {}
};

/// Number of eigenvalues of the tridiagonal (d, e) below x: negative pivots of LDL^T (Sturm).
__device__ int count_below(const double* d, const double* e2, int n, double x, double smallest) {
  int count = 0;
  double q = d[0] - x;
  if (fabs(q) < smallest) q = -smallest;
  count += q < 0;
  for (int i = 1; i < n; ++i) {
    q = d[i] - x - e2[i - 1] / q;
    if (fabs(q) < smallest) q = -smallest;
    count += q < 0;
  }
  return count;
}

/// One block a matrix, all of it in shared memory.
__global__ void __launch_bounds__(kThreads, 1)
    eigenvalues(const double* __restrict__ all, double* __restrict__ out, int n) {
  extern __shared__ double shared[];
  double* a = shared;     // [n, n] symmetric, both triangles
  double* v = a + n * n;  // Householder vector
  double* w = v + n;
  double* d = w + n;        // diagonal of T
  double* e = d + n;        // beside it; later squared
  double* partial = e + n;  // [parts, n]
  __shared__ double reduced[32];
  const Split split(n);
  const int i = threadIdx.x % split.rows, part = threadIdx.x / split.rows;
  const bool works = i < n && part < split.parts;
  const double* given = all + static_cast<std::int64_t>(blockIdx.x) * n * n;
  double largest = 0;
  for (int index = threadIdx.x; index < n * n; index += kThreads) {
    const int row = index / n, col = index % n;
    if (col > row) continue;
    a[row * n + col] = a[col * n + row] = given[index];
    // fmax would let a NaN go by.
    largest = isfinite(given[index]) ? fmax(largest, fabs(given[index])) : INFINITY;
    if (largest == INFINITY) break;
  }
  largest = block_max(largest, reduced);
  double* value = out + static_cast<std::int64_t>(blockIdx.x) * n + threadIdx.x;
  if (largest == 0 || largest == INFINITY) {
    if (threadIdx.x < n) *value = largest == 0 ? 0 : __longlong_as_double(0x7ff8000000000000LL);
    return;
  }
  // By a power of two, which changes no bit but keeps squares inside the range.
  const int exponent = ilogb(largest);
  for (int index = threadIdx.x; index < n * n; index += kThreads)
    a[index] = ldexp(a[index], -exponent);
  __syncthreads();

  for (int k = 0; k + 2 < n; ++k) {
    double* column = a + k * n;
    const double x = threadIdx.x > k + 1 && threadIdx.x < n ? column[threadIdx.x] : 0;
    const double below = block_sum(x * x, reduced);
    const double first = column[k + 1];
    if (threadIdx.x == 0) d[k] = column[k];
    // Uniform over the block: every thread sees the same sum.
    if (below == 0) {
      if (threadIdx.x == 0) e[k] = first;
      __syncthreads();
      continue;
    }
    const double alpha = first > 0 ? -sqrt(first * first + below) : sqrt(first * first + below);
    const double tau = 1 / (alpha * (alpha - first));
    if (threadIdx.x == 0) e[k] = alpha;
    if (threadIdx.x > k && threadIdx.x < n) {
      v[threadIdx.x] = threadIdx.x == k + 1 ? first - alpha : x;
    }
    __syncthreads();
    double sum = 0;
    if (works && i > k) {
#pragma unroll 4
      for (int j = k + 1 + part; j < n; j += split.parts) sum += a[j * n + i] * v[j];
    }
    if (works) partial[part * n + i] = sum;
    __syncthreads();
    double p = 0;
    if (threadIdx.x > k && threadIdx.x < n) {
      for (int q = 0; q < split.parts; ++q) p += partial[q * n + threadIdx.x];
      p *= tau;
    }
    const bool mine = threadIdx.x > k && threadIdx.x < n;
    const double pv = block_sum(mine ? p * v[threadIdx.x] : 0, reduced);
    if (mine) w[threadIdx.x] = p - tau / 2 * pv * v[threadIdx.x];
    __syncthreads();
    if (works && i > k) {
      const double vi = v[i], wi = w[i];
#pragma unroll 4
      for (int j = k + 1 + part; j < n; j += split.parts) a[j * n + i] -= v[j] * wi + w[j] * vi;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    if (n >= 2) {
      d[n - 2] = a[(n - 2) * n + n - 2];
      e[n - 2] = a[(n - 2) * n + n - 1];
    }
    d[n - 1] = a[n * n - 1];
  }
  __syncthreads();

  // Bisection, one thread an eigenvalue. Gershgorin's discs hold all of them.
  double radius = 0;
  if (threadIdx.x < n) {
    radius = fabs(d[threadIdx.x]) + (threadIdx.x > 0 ? fabs(e[threadIdx.x - 1]) : 0) +
             (threadIdx.x + 1 < n ? fabs(e[threadIdx.x]) : 0);
  }
  const double bound = block_max(radius, reduced);
  __syncthreads();
  if (threadIdx.x + 1 < n) e[threadIdx.x] *= e[threadIdx.x];
  __syncthreads();
  if (threadIdx.x >= n) return;
  // Far below rounding of the largest entry, and large enough for e^2 / q to stay finite.
  const double smallest = bound * 1e-30;
  double low = -bound, high = bound;
  const int above = n - 1 - threadIdx.x;  // descending: how many lie below mine
  for (int step = 0; step < 64 && high - low > 2.3e-16 * bound; ++step) {
    const double middle = low + (high - low) / 2;
    if (count_below(d, e, n, middle, smallest) > above) {
      high = middle;
    } else {
      low = middle;
    }
  }
  *value = ldexp(low + (high - low) / 2, exponent);
}

std::int64_t shared_bytes(std::int64_t n) {
  const Split split(static_cast<int>(n));
  return 8 * (n * n + (4 + split.parts) * n);
}

}  // namespace

std::int64_t symmetric_eigenvalues_cuda_limit(std::int64_t shared_memory) {
  std::int64_t n = 1;
  while (n < kThreads / 2 && shared_bytes(n + 1) + 512 <= shared_memory) ++n;
  return n;
}

std::int64_t symmetric_eigenvalues_cuda_limit() {
  int device = 0, shared_memory = 0;
  check_cuda(cudaGetDevice(&device), "symmetric_eigenvalues");
  check_cuda(
      cudaDeviceGetAttribute(&shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
      "symmetric_eigenvalues");
  return symmetric_eigenvalues_cuda_limit(shared_memory);
}

void symmetric_eigenvalues_cuda(const SymmetricEigenvalues& p, Stream stream) {
  if (p.batch == 0 || p.n == 0) return;
  const auto bytes = static_cast<int>(shared_bytes(p.n));
  allow_shared_memory(eigenvalues, "symmetric_eigenvalues");
  eigenvalues<<<static_cast<unsigned>(p.batch), kThreads, bytes,
                static_cast<cudaStream_t>(stream)>>>(p.a, p.out, static_cast<int>(p.n));
  check_cuda(cudaGetLastError(), "symmetric_eigenvalues");
}

}  // namespace subspace::kernels
