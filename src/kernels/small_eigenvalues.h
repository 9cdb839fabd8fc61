#pragma once

#include <cstdint>
#include <vector>

#include "kernels/isa.h"

namespace subspace::kernels {

/// Eigenvalues of small matrices without symmetry, one after another on one thread.
///
///   A = Q H Q^T (Householder reflections),  H upper Hessenberg,  eig(H) by Francis' double shifts
///
/// Cost: about 10 n^3 operations. The rows above a sweep's window take its reflections several at a
/// time, four rows side by side, since columns of three do not fill a register. Not balanced: the
/// error is that of a change of A by about n eps ||A||_F, whatever its scaling. No allocation once
/// the largest matrix has been seen; the same input gives the same bits. Source: Golub and Van
/// Loan, Matrix Computations, sections 7.4 and 7.5; when an entry is negligible: Ahues and
/// Tisseur, "A new deflation criterion for the QR algorithm" (LAPACK working note 122, 1997).
class SmallEigenvalues {
 public:
  explicit SmallEigenvalues(Isa isa = best_isa()) : isa_(isa) {}

  /// A [n, n], rows `stride` apart. False, and NaN for all, if A has a NaN or an infinity or the
  /// iteration does not end.
  bool find(const double* a, std::int64_t n, std::int64_t stride);

  /// In no order; conjugate pairs stand beside each other, the positive imaginary part first.
  const std::vector<double>& real() const { return real_; }
  const std::vector<double>& imaginary() const { return imaginary_; }

 private:
  bool iterate(double norm);
  bool negligible(std::int64_t k, double norm, int tries) const;
  void last_two(std::int64_t high);
  double& h(std::int64_t i, std::int64_t j) {
    return work_[static_cast<std::size_t>(i * width_ + j)];
  }
  double h(std::int64_t i, std::int64_t j) const {
    return work_[static_cast<std::size_t>(i * width_ + j)];
  }

  Isa isa_;
  std::int64_t n_ = 0, width_ = 0;
  std::vector<double> work_, scratch_, real_, imaginary_;
};

}  // namespace subspace::kernels
