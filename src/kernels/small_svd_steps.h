#pragma once

#include <cstdint>

#include "kernels/small_svd.h"

namespace subspace::kernels {

/// B = Q^T A P, upper bidiagonal: reflection k, I - tau v v^T, acts on rows (columns) k (k + 1) ..
struct Bidiagonalisation {
  double* a = nullptr;  ///< [rows, width], used up; columns from n on are zero
  std::int64_t rows = 0, n = 0, width = 0;
  double* left = nullptr;                            ///< [n, rows] out
  double* right = nullptr;                           ///< [n, width] out, zero up to column k
  double *left_tau = nullptr, *right_tau = nullptr;  ///< [n] out
  double *d = nullptr, *e = nullptr;                 ///< [n] out
  double *row = nullptr, *sums = nullptr;            ///< [width] scratch
};

/// X <- H_{n-1} .. H_0 X (`forward`), or H_0 .. H_{n-1} X; x [rows, columns], whole packs.
struct Reflections {
  const double* v = nullptr;  ///< [n, stride]
  std::int64_t stride = 0;
  const double* tau = nullptr;
  std::int64_t n = 0, rows = 0;
  std::int64_t skip = 0;  ///< v_k is zero before k + skip
  double* x = nullptr;
  std::int64_t columns = 0;
  bool forward = true;
};

/// One sweep of implicit QR in each of four bidiagonal matrices that stand side by side, from its
/// first row to its last; none where `steps` is 0.
struct BidiagonalSweeps {
  double *d = nullptr, *e = nullptr;  ///< [most steps + 1, 4], [most steps, 4]
  double* turns = nullptr;  ///< [most steps, 4, 4] out: cosine, sine on the right, then on the left
  bool shifted = false;     ///< none of the shifts is zero, or all are
  std::int64_t steps[4] = {};
  double shift[4] = {};
};

/// Versions by instruction set.
struct SvdSteps {
  void (*bidiagonalise)(const Bidiagonalisation& p);
  void (*reflect)(const Reflections& p);
  /// The list one after another on x [.., columns]; `forward` false: backwards and turned back.
  void (*rotate)(const SmallSvd::Rotation* turns, std::int64_t count, bool forward, double* x,
                 std::int64_t columns);
  void (*sweep)(const BidiagonalSweeps& p);
};
SvdSteps svd_steps_portable();
SvdSteps svd_steps_avx2();

}  // namespace subspace::kernels
