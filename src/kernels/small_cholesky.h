#pragma once

#include <cstdint>

#include "kernels/isa.h"

namespace subspace::kernels {

/// R, upper triangular with zeros below, of G = R^T R; g [n, n], of which the upper triangle is
/// read, r [n, n] out. False, with r of no meaning, if G is not positive definite to rounding or
/// has a NaN or an infinity among what is read.
///
/// n^3 / 3 operations on the calling thread; the same bits whatever the number of others. Error:
/// that of a change of G by n eps |G|. Source: Golub and Van Loan, Matrix Computations, section
/// 4.2, by outer products.
bool small_cholesky(const double* g, std::int64_t n, double* r, Isa isa = best_isa());

}  // namespace subspace::kernels
