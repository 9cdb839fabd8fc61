#pragma once

#include <cstdint>

#include "kernels/isa.h"

namespace subspace::kernels {

/// How a matrix lies in memory: row after row, column after column (a transposed one), or as the
/// lower triangle, row after row, of a symmetric one, of which the rest is not read.
enum class Stored { rows, columns, lower };

struct ProductOperand {
  const double* data = nullptr;
  std::int64_t stride = 0;  ///< between rows, or columns
  Stored stored = Stored::rows;
  std::int64_t batch_stride = 0;  ///< between matrices; 0: all products have this one
};

/// Products of float64 matrices.
///
///   C_b <- alpha A_b diag(w) B_b + beta C_b,   A [m, k], B [k, n], C [m, n], b < batch
///
/// c        rows with `stride` between them; must not overlap what is read. beta = 0: C is only
///          written, whatever it held
/// weights  w [k], of all products, or nullptr for ones
/// lower    C is square and known to be symmetric: only its lower triangle is computed and written
///          (about half of the work). X^T diag(w) X is a = columns of X, b = rows of X; the update
///          of rank 2k, V W^T + W V^T, is the product of [V W] and [W V]^T
///
/// 2 m n k operations a product. Blocks of A and B are copied into panels that the caches keep and
/// that a small tile of C in registers runs along (Goto and van de Geijn, "Anatomy of high-
/// performance matrix multiplication", ACM TOMS 34, 2008; Van Zee and van de Geijn, "BLIS", ACM
/// TOMS 41, 2015). Here a thread has panels of its own and all of k for its part of C, so that no
/// thread waits for another.
///
/// Each value of C is made by the same operations in the same order wherever its tile lies: the
/// number of threads changes no bit, nor does `lower`, and A^T A is symmetric to the bit. Error:
/// product_tolerance. NaN and infinities go where the sums have them, also through alpha = 0.
/// Memory: 2.2 MiB a thread.
struct MatrixProduct {
  ProductOperand a, b;
  double* c = nullptr;
  std::int64_t stride = 0;
  std::int64_t batch_stride = 0;
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t batch = 1;
  double alpha = 1, beta = 0;
  const double* weights = nullptr;
  bool lower = false;
};

void matrix_product_reference(const MatrixProduct& p);
/// Has an AVX-512 version. `isa` must be available.
void matrix_product_cpu(const MatrixProduct& p, int threads, Isa isa = widest_isa());

/// Two ways of summing k products differ by at most this times
/// |alpha| |A| diag|w| |B| + |beta| |C|: each is within (k + 4) eps / 2 of the exact value, for one
/// rounding each of k sums, the weight, alpha, beta and the last addition.
double product_tolerance(std::int64_t k);

/// The upper triangle of an n x n matrix from its lower one.
void mirror_lower(double* c, std::int64_t n, std::int64_t stride, int threads);

}  // namespace subspace::kernels
