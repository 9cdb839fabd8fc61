#pragma once

#include <cstdint>
#include <vector>

#include "kernels/small_svd_steps.h"

namespace subspace::kernels {

/// One upper bidiagonal matrix to be made diagonal; rotations are added to the lists as they are
/// made.
struct Bidiagonal {
  double *d = nullptr, *e = nullptr;  ///< [n]; e[n - 1] is of no matrix
  std::int64_t n = 0;
  std::vector<SmallSvd::Rotation>*left = nullptr, *right = nullptr;
  bool converged = false;  ///< out
};

/// Implicit QR on up to four matrices, shifted or not (Demmel and Kahan), one unreduced block of
/// each at a time. Each rotation waits for the one before it, so those of the four are made side by
/// side; one matrix's bits do not depend on the others.
void diagonalise(Bidiagonal* matrices, std::int64_t count, void (*sweep)(const BidiagonalSweeps&),
                 std::vector<double>& scratch);

}  // namespace subspace::kernels
