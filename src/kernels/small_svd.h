#pragma once

#include <cstdint>
#include <vector>

#include "kernels/isa.h"

namespace subspace::kernels {

struct Reflections;

/// Singular value decompositions of small matrices, one after another on one thread.
///
///   A = U diag(sigma) V^T,   A [m, n],   q = min(m, n) values, descending
///
/// All values, and of the vectors only what is asked for: the first few, or the products of all of
/// them with a few given vectors. The reduction A = Q B P^T to a bidiagonal B passes over the
/// matrix once a column (both reflections of a step, and what the next one needs, row by row while
/// a row is in the first-level cache); implicit QR, shifted or not, turns B into the values; its
/// rotations are kept in a list, so that applying them to c vectors costs c columns and not q.
///
/// Cost: 8/3 q^2 (m - q/3 ..) operations for the values, about 12 q^2 c more for c vectors of one
/// side. Error: values within small_svd_tolerance(m, n) * sigma_1 of the exact ones, vectors
/// orthonormal to that. No allocation once the largest matrix has been seen: up to (3 m n) values
/// and some 50 q^2 bytes. The same input gives the same bits, whatever was done before.
/// Sources: Golub and Kahan, "Calculating the singular values and pseudo-inverse of a matrix" (SIAM
/// J. Numer. Anal. B 2, 1965); Demmel and Kahan, "Accurate singular values of bidiagonal matrices"
/// (SIAM J. Sci. Stat. Comput. 11, 1990); Howell et al., "Cache efficient bidiagonalization using
/// BLAS 2.5 operators" (ACM TOMS 34, 2008) for one pass a column.
class SmallSvd {
 public:
  explicit SmallSvd(Isa isa = best_isa()) : isa_(isa) {}

  /// A's rows are `stride` apart. False, and NaN for all values, if A has a NaN or an infinity or
  /// the iteration does not end; nothing else may then be asked for.
  bool decompose(const double* a, std::int64_t m, std::int64_t n, std::int64_t stride);

  /// One decomposition of several; `done` is what decompose() gives.
  struct Task {
    SmallSvd* svd = nullptr;
    const double* a = nullptr;
    std::int64_t m = 0, n = 0, stride = 0;
    bool done = false;
  };
  /// Up to kAtOnce of them on this thread, whose iterations run side by side: the same bits as one
  /// after another, in less time where their sizes are alike.
  static void decompose(Task* tasks, std::int64_t count);
  static constexpr std::int64_t kAtOnce = 4;

  /// sigma [q], descending.
  const std::vector<double>& values() const { return values_; }

  /// The first `count` <= q columns of U, out [m, count]; of V, out [n, count].
  void left(std::int64_t count, double* out) { vectors(true, count, out); }
  void right(std::int64_t count, double* out) { vectors(false, count, out); }

  /// U^T X, X [m, count] -> [q, count]; V^T X, X [n, count] -> [q, count].
  void project_left(const double* x, std::int64_t count, double* out) {
    project(true, x, count, out);
  }
  void project_right(const double* x, std::int64_t count, double* out) {
    project(false, x, count, out);
  }

  /// One rotation of rows `row` and `row` + 1: (x, y) <- (c x + s y, c y - s x).
  struct Rotation {
    std::int64_t row;
    double c, s;
  };

 private:
  void vectors(bool left, std::int64_t count, double* out);
  void project(bool left, const double* x, std::int64_t count, double* out);

  bool reduce(const double* a, std::int64_t m, std::int64_t n, std::int64_t stride);
  bool finish(bool converged);
  Reflections reflections(bool own_left, std::int64_t columns, bool forward);

  Isa isa_;
  bool turned_ = false;                                      // A^T is what is decomposed
  std::int64_t rows_ = 0, q_ = 0;                            // of that, rows_ >= q_
  std::int64_t width_ = 0;                                   // q_ in whole packs and one more
  std::vector<double> work_;                                 // the matrix, [rows_, width_]
  std::vector<double> left_, right_, left_tau_, right_tau_;  // reflections, one a row
  int exponent_ = 0;                                         // of the largest entry
  std::vector<double> d_, e_, row_, sums_, image_, values_, iteration_;
  std::vector<std::int64_t> order_;
  std::vector<Rotation> left_turns_, right_turns_;
};

/// Bound on |computed - exact| / sigma_1: 8 max(m, n) eps.
double small_svd_tolerance(std::int64_t m, std::int64_t n);

}  // namespace subspace::kernels
