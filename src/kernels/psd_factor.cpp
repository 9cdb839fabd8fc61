#include "kernels/psd_factor.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/over_batch.h"

namespace subspace::kernels {
namespace {

constexpr double kEliminated = -1;  // marks a pivot's place on the diagonal

double lower(const double* g, std::int64_t n, std::int64_t i, std::int64_t j) {
  return i >= j ? g[i * n + j] : g[j * n + i];
}

/// A comparison with NaN would end the elimination early and leave a finite, wrong factor.
bool refuses(const double* g, double* r, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const double* row = g + i * n;
    if (std::all_of(row, row + i + 1, [](double x) { return std::isfinite(x); })) continue;
    std::fill(r, r + n * n, std::numeric_limits<double>::quiet_NaN());
    return true;
  }
  return false;
}

/// Copies the diagonal; returns the value at or below which a pivot is rounding.
double start(const double* g, double* diagonal, std::int64_t n) {
  double largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    diagonal[i] = std::max(g[i * n + i], 0.0);
    largest = std::max(largest, diagonal[i]);
  }
  return static_cast<double>(n) * std::numeric_limits<double>::epsilon() * largest;
}

void factor(const double* g, double* r, double* diagonal, std::int64_t n) {
  if (refuses(g, r, n)) return;
  const double negligible = start(g, diagonal, n);
  std::fill(r, r + n * n, 0.0);
  for (std::int64_t k = 0; k < n; ++k) {
    const std::int64_t pivot = std::max_element(diagonal, diagonal + n) - diagonal;
    if (!(diagonal[pivot] > negligible)) return;
    double* row = r + k * n;
    for (std::int64_t i = 0; i < n; ++i) row[i] = lower(g, n, pivot, i);
    // Rows, not columns, of R: the inner loops run along memory.
    for (std::int64_t j = 0; j < k; ++j) {
      const double* earlier = r + j * n;
      const double x = earlier[pivot];
      for (std::int64_t i = 0; i < n; ++i) row[i] -= x * earlier[i];
    }
    const double root = std::sqrt(diagonal[pivot]);
    for (std::int64_t i = 0; i < n; ++i) {
      if (diagonal[i] < 0) {
        row[i] = 0;
        continue;
      }
      row[i] /= root;
      diagonal[i] = std::max(diagonal[i] - row[i] * row[i], 0.0);
    }
    row[pivot] = root;
    diagonal[pivot] = kEliminated;
  }
}

}  // namespace

void psd_factor_reference(const PsdFactor& p) {
  const std::int64_t n = p.n;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    const double* g = p.g + b * n * n;
    double* r = p.r + b * n * n;
    double* diagonal = p.diagonal + b * n;
    if (refuses(g, r, n)) continue;
    const double negligible = start(g, diagonal, n);
    std::fill(r, r + n * n, 0.0);
    for (std::int64_t k = 0; k < n; ++k) {
      std::int64_t pivot = 0;
      for (std::int64_t i = 1; i < n; ++i) {
        if (diagonal[i] > diagonal[pivot]) pivot = i;
      }
      if (!(diagonal[pivot] > negligible)) break;
      const double root = std::sqrt(diagonal[pivot]);
      for (std::int64_t i = 0; i < n; ++i) {
        if (i == pivot || diagonal[i] < 0) continue;
        double sum = 0;
        for (std::int64_t j = 0; j < k; ++j) sum += r[j * n + pivot] * r[j * n + i];
        r[k * n + i] = (lower(g, n, pivot, i) - sum) / root;
        diagonal[i] = std::max(diagonal[i] - r[k * n + i] * r[k * n + i], 0.0);
      }
      r[k * n + pivot] = root;
      diagonal[pivot] = kEliminated;
    }
  }
}

void psd_factor_cpu(const PsdFactor& p, int threads) {
  over_batch(p.batch, threads, [&](std::int64_t b) {
    factor(p.g + b * p.n * p.n, p.r + b * p.n * p.n, p.diagonal + b * p.n, p.n);
  });
}

}  // namespace subspace::kernels
