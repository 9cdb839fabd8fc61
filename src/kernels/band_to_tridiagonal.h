#pragma once

#include <cstdint>

#include "kernels/isa.h"

namespace subspace::kernels {

/// Tridiagonal form of a symmetric band matrix, by orthogonal similarity (its eigenvalues stay).
///
///   A = H T H^T, column after column: a reflection clears a column below its first off-diagonal
///   entry and fills a block further down, which the next reflection clears in part ("bulge
///   chasing"); what it leaves lies inside 2 width diagonals
///
/// band   [n, 2 width], overwritten. Row j holds column j of A from the diagonal down:
///        band[j, i] = A[j + i, j]; entries with i > width or j + i >= n must be zero
/// d, e   [n], [n - 1] out: diagonal and off-diagonal of T
///
/// width >= 1. About 6 n^2 width operations, in blocks of width x width that stay in the caches;
/// several columns are under way at once, in a fixed order of dependences, so that the number of
/// threads changes no bit. Source: Lang, "A parallel algorithm for reducing symmetric banded
/// matrices to tridiagonal form", SIAM J. Sci. Comput. 14 (1993).
struct BandToTridiagonal {
  double* band = nullptr;
  double* d = nullptr;
  double* e = nullptr;
  std::int64_t n = 0;
  std::int64_t width = 0;
};

/// Givens rotations on a full matrix, one entry after another: slow, shares no code with the other.
void band_to_tridiagonal_reference(const BandToTridiagonal& p);
void band_to_tridiagonal_cpu(const BandToTridiagonal& p, int threads, Isa isa = best_isa());

}  // namespace subspace::kernels
