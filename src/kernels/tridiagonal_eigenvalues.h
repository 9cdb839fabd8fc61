#pragma once

#include <cstdint>

namespace subspace::kernels {

/// Eigenvalues of the symmetric tridiagonal T with diagonal d [n] and off-diagonal e [n - 1], by
/// implicit QR with Wilkinson's shift: into d, in no order; e is overwritten. False if an
/// eigenvalue did not converge. About 1.5 n^2 rotations. Entries should be near 1, so that no
/// square over- or underflows. Error: about n eps ||T||_2. Source: Golub and Van Loan, section 8.3.
bool tridiagonal_eigenvalues(double* d, double* e, std::int64_t n);

}  // namespace subspace::kernels
