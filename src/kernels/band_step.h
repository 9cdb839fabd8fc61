#pragma once

#include <cstdint>

namespace subspace::kernels {

/// One step of one sweep of band_to_tridiagonal: the reflection (v, tau) acts on the diagonal block
/// D of rows row .. row + width - 1 from both sides and on the block B below it from the right;
/// B's first column gives the next step's reflection, which acts on B from the left and replaces v.
struct BandStep {
  double* band = nullptr;
  std::int64_t n = 0;
  std::int64_t width = 0;
  std::int64_t row = 0;
  bool first = false;      ///< v comes from column row - 1, which it clears
  double* v = nullptr;     ///< [width]
  double tau = 0;          ///< I - tau v v^T
  double* w = nullptr;     ///< [width] scratch
  double* next = nullptr;  ///< [width] scratch
};

/// Versions by instruction set; each returns the next step's tau.
double band_step_portable(const BandStep& step);
double band_step_avx2(const BandStep& step);

}  // namespace subspace::kernels
