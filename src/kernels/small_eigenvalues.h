#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/isa.h"

namespace subspace::kernels {

/// Eigenvalues of small matrices without symmetry on one thread, four at once.
///
///   A = Q H Q^T (Householder reflections),  H upper Hessenberg,  eig(H) by Francis' double shifts
///
/// Each shift waits for the reflection before it, and three rows at a time do not fill registers:
/// so the iterations of four matrices run side by side, an element of each in one register, with
/// shifts and ends of their own. A reflection is applied at once only where the next ones need it,
/// on the way to H too (panels of I - V T V^T, as LAPACK's dgehrd).
///
/// Cost: about 10 n^3 operations a matrix; four cost little more than one. Not balanced: the error
/// is that of a change of A by about n eps ||A||_F, whatever its scaling. No allocation once the
/// largest matrix has been seen; the same input gives the same bits, whatever stands beside it.
/// Source: Golub and Van Loan, Matrix Computations, sections 7.4 and 7.5; when an entry is
/// negligible: Ahues and Tisseur, "A new deflation criterion for the QR algorithm" (LAPACK working
/// note 122, 1997).
class SmallEigenvalues {
 public:
  static constexpr std::int64_t kAtOnce = 4;

  explicit SmallEigenvalues(Isa isa = best_isa()) : isa_(isa) {}

  /// Matrices [n, n], up to kAtOnce of them, rows `stride` apart. found() says of each whether its
  /// iteration ended; if not, or if it has a NaN or an infinity, all its values are NaN.
  void find(const double* const* a, std::int64_t count, std::int64_t n, std::int64_t stride);
  /// One matrix.
  bool find(const double* a, std::int64_t n, std::int64_t stride) {
    find(&a, 1, n, stride);
    return found();
  }

  bool found(std::int64_t which = 0) const { return matrix(which).found; }
  /// In no order; conjugate pairs stand beside each other, the positive imaginary part first.
  const std::vector<double>& real(std::int64_t which = 0) const { return matrix(which).real; }
  const std::vector<double>& imaginary(std::int64_t which = 0) const {
    return matrix(which).imaginary;
  }

 private:
  /// Where the iteration of a matrix stands.
  struct One {
    std::vector<double> real, imaginary;
    std::int64_t low = 0, high = -1;  ///< what is to be swept; none: high < 0
    double norm = 0;
    int exponent = 0, tries = 0;
    bool found = false;
  };

  const One& matrix(std::int64_t which) const { return matrices_[static_cast<std::size_t>(which)]; }
  void start(std::int64_t which, const double* a, std::int64_t stride);
  /// Takes what is done off the end; false if there is nothing left to sweep.
  bool shrink(std::int64_t which);
  bool negligible(std::int64_t which, std::int64_t k) const;
  void last_two(std::int64_t which);
  void shifts(std::int64_t which, double* first) const;
  double& h(std::int64_t which, std::int64_t i, std::int64_t j) {
    return lanes_[static_cast<std::size_t>((i * width_ + j) * kAtOnce + which)];
  }
  double h(std::int64_t which, std::int64_t i, std::int64_t j) const {
    return lanes_[static_cast<std::size_t>((i * width_ + j) * kAtOnce + which)];
  }

  Isa isa_;
  std::int64_t n_ = 0, width_ = 0;
  std::array<One, kAtOnce> matrices_;
  std::vector<double> lanes_, work_, scratch_;
};

}  // namespace subspace::kernels
