#pragma once

#include <cstdint>

#include "kernels/device.h"

namespace subspace::kernels {

/// Factors of positive semidefinite matrices by Cholesky with diagonal pivoting.
///
///   G = R^T R,   row k of R eliminates the largest diagonal entry that is left
///
/// g         [batch, n, n] row-major; only the lower triangle is read
/// r         [batch, n, n] out; columns in G's own order, so no permutation is returned
/// diagonal  [batch, n] scratch
///
/// A matrix with a NaN or an infinity gives NaN for its whole factor.
/// Stops at the numerical rank: once no remaining diagonal entry exceeds n*eps*(largest entry), the
/// remaining rows are zero. Never divides by less than that, so zero and rank-deficient matrices
/// give finite factors. At most n^3 flops a matrix. Source: Higham, "Analysis of the Cholesky
/// Decomposition of a Semi-definite Matrix" (1990).
struct PsdFactor {
  const double* g = nullptr;
  double* r = nullptr;
  double* diagonal = nullptr;
  std::int64_t n = 0;
  std::int64_t batch = 0;
};

void psd_factor_reference(const PsdFactor& p);
void psd_factor_cpu(const PsdFactor& p, int threads);
/// One block a matrix in shared memory; n as in symmetric_eigenvalues_cuda. Needs no scratch.
void psd_factor_cuda(const PsdFactor& p, Stream stream);

}  // namespace subspace::kernels
