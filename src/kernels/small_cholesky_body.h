#pragma once

#include "kernels/packs.h"
#include "kernels/small_cholesky_steps.h"

namespace subspace::kernels {
namespace {

/// x -= s y, n elements.
inline void subtract_row(double* x, const double* y, double s, std::int64_t n) {
  Pack a, b;
  std::int64_t j = 0;
  for (; j + kPack <= n; j += kPack) {
    load(a, x + j);
    load(b, y + j);
    a -= s * b;
    store(x + j, a);
  }
  for (; j < n; ++j) x[j] -= s * y[j];
}

inline bool cholesky(double* r, std::int64_t n) {
  for (std::int64_t k = 0; k < n; ++k) {
    double* row = r + k * n;
    // False for a NaN; what is infinite gives one, or an infinite pivot.
    if (!(row[k] > 0) || row[k] > __DBL_MAX__) return false;
    row[k] = __builtin_sqrt(row[k]);
    const double inverse = 1 / row[k];
    for (std::int64_t j = k + 1; j < n; ++j) row[j] *= inverse;
    for (std::int64_t i = k + 1; i < n; ++i) subtract_row(r + i * n + i, row + i, row[i], n - i);
  }
  return true;
}

}  // namespace
}  // namespace subspace::kernels
