#pragma once

#include <cstdint>

#include "kernels/device.h"

namespace subspace::kernels {

/// Eigenvalues of many small symmetric matrices.
///
///   A = H T H^T (Householder reflections),  eig(A) = eig(T) by implicit QR with Wilkinson's shift
///
/// a        [batch, n, n] row-major, overwritten; only the lower triangle is read
/// out      [batch, n], descending
/// scratch  [batch, 3 n]
///
/// Error: at most eigenvalue_tolerance(n) * ||A||_2 for each value. A matrix with a NaN or an
/// infinity, or whose iteration does not end, gives NaN for all its values. About 2 n^3 flops a
/// matrix (both triangles are kept so that every inner loop runs along memory), meant for matrices
/// that fit the second-level cache. Source: Golub and Van Loan, Matrix Computations, section 8.3.
struct SymmetricEigenvalues {
  double* a = nullptr;
  double* out = nullptr;
  double* scratch = nullptr;
  std::int64_t n = 0;
  std::int64_t batch = 0;
};

/// Cyclic Jacobi: slow, shares no code with the others.
void symmetric_eigenvalues_reference(const SymmetricEigenvalues& p);
void symmetric_eigenvalues_cpu(const SymmetricEigenvalues& p, int threads);
/// One block a matrix in shared memory: Householder, then bisection, one thread a value. Leaves `a`
/// alone and needs no scratch; n up to symmetric_eigenvalues_cuda_limit.
void symmetric_eigenvalues_cuda(const SymmetricEigenvalues& p, Stream stream);

/// The largest n whose matrix fits a block's shared memory (227 KB on sm_90: 164; 163 KB on sm_80).
std::int64_t symmetric_eigenvalues_cuda_limit(std::int64_t shared_memory);
/// The same for the current device.
std::int64_t symmetric_eigenvalues_cuda_limit();

/// Bound on |computed - exact| / ||A||_2 for either function: 8 n eps.
double eigenvalue_tolerance(std::int64_t n);

}  // namespace subspace::kernels
