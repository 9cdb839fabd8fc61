#include "kernels/symmetric_eigenvalues.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/over_batch.h"
#include "kernels/tridiagonal_eigenvalues.h"

namespace subspace::kernels {
namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();
constexpr int kMostSweeps = 60;  // of Jacobi; fewer than ten are usual

/// Mirrors the lower triangle and scales by a power of two to entries of at most 1, so that no
/// square over- or underflows. Returns what undoes the scaling: 0 for a zero matrix, NaN where an
/// entry is not finite.
double prepare(double* a, std::int64_t n) {
  double largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      const double x = std::abs(a[i * n + j]);
      if (!std::isfinite(x)) return std::numeric_limits<double>::quiet_NaN();
      largest = std::max(largest, x);
    }
  }
  if (largest == 0) return 0;
  int exponent = 0;
  std::frexp(largest, &exponent);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      a[i * n + j] = std::ldexp(a[i * n + j], -exponent);
      a[j * n + i] = a[i * n + j];
    }
  }
  return std::ldexp(0.5, exponent) * 2;
}

/// y = A v for the m x m matrix at `a`, four rows at a time: a sum over rows, not dot products,
/// vectorises without reordering any sum.
void multiply(const double* a, std::int64_t stride, const double* v, double* y, std::int64_t m) {
  std::fill(y, y + m, 0.0);
  std::int64_t i = 0;
  for (; i + 4 <= m; i += 4) {
    const double* r0 = a + i * stride;
    const double* r1 = r0 + stride;
    const double* r2 = r1 + stride;
    const double* r3 = r2 + stride;
    for (std::int64_t j = 0; j < m; ++j) {
      y[j] += (v[i] * r0[j] + v[i + 1] * r1[j]) + (v[i + 2] * r2[j] + v[i + 3] * r3[j]);
    }
  }
  for (; i < m; ++i) {
    for (std::int64_t j = 0; j < m; ++j) y[j] += v[i] * a[i * stride + j];
  }
}

/// d, e: diagonal and off-diagonal of T; w: scratch of n. Row k of `a` becomes its reflector.
void tridiagonalise(double* a, std::int64_t n, double* d, double* e, double* w) {
  for (std::int64_t k = 0; k + 1 < n; ++k) {
    d[k] = a[k * n + k];
    const std::int64_t m = n - k - 1;
    double* v = a + k * n + k + 1;
    double* rest = a + (k + 1) * n + k + 1;
    double tail = 0;
    for (std::int64_t i = 1; i < m; ++i) tail += v[i] * v[i];
    e[k] = v[0];
    if (tail == 0) continue;
    const double alpha = -std::copysign(std::sqrt(v[0] * v[0] + tail), v[0]);
    e[k] = alpha;
    v[0] -= alpha;
    const double beta = 2 / (v[0] * v[0] + tail);
    multiply(rest, n, v, w, m);
    double inner = 0;
    for (std::int64_t i = 0; i < m; ++i) inner += w[i] * v[i];
    const double shift = beta * inner / 2;
    for (std::int64_t i = 0; i < m; ++i) w[i] = beta * (w[i] - shift * v[i]);
    for (std::int64_t i = 0; i < m; ++i) {
      const double vi = v[i];
      const double wi = w[i];
      double* row = rest + i * n;
      for (std::int64_t j = 0; j < m; ++j) row[j] -= vi * w[j] + wi * v[j];
    }
  }
  d[n - 1] = a[n * n - 1];
}

void finish(double* out, std::int64_t n, double scale, bool converged) {
  if (!converged) scale = std::numeric_limits<double>::quiet_NaN();
  for (std::int64_t i = 0; i < n; ++i) out[i] *= scale;
  if (converged) std::sort(out, out + n, std::greater<>());
}

/// True where only zeros or NaN can be the answer, which it then writes.
bool trivial(double* out, std::int64_t n, double scale) {
  if (scale > 0) return false;
  std::fill(out, out + n, scale);
  return true;
}

}  // namespace

void symmetric_eigenvalues_cpu(const SymmetricEigenvalues& p, int threads) {
  const std::int64_t n = p.n;
  if (n == 0) return;
  over_batch(p.batch, threads, [&](std::int64_t b) {
    double* a = p.a + b * n * n;
    double* d = p.out + b * n;
    double* e = p.scratch + b * 3 * n;
    const double scale = prepare(a, n);
    if (trivial(d, n, scale)) return;
    tridiagonalise(a, n, d, e, e + n);
    const bool converged = tridiagonal_eigenvalues(d, e, n);
    finish(d, n, scale, converged);
  });
}

void symmetric_eigenvalues_reference(const SymmetricEigenvalues& p) {
  const std::int64_t n = p.n;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    double* a = p.a + b * n * n;
    double* out = p.out + b * n;
    const double scale = prepare(a, n);
    if (trivial(out, n, scale)) continue;
    bool converged = false;
    for (int sweep = 0; sweep < kMostSweeps && !converged; ++sweep) {
      double off = 0;
      double all = 0;
      for (std::int64_t i = 0; i < n * n; ++i) {
        all += a[i] * a[i];
        if (i / n != i % n) off += a[i] * a[i];
      }
      // What is left moves no eigenvalue by more than sqrt(n) eps ||A||_F <= n eps ||A||_2.
      converged = off <= static_cast<double>(n) * kEps * kEps * all;
      for (std::int64_t i = 0; i < n && !converged; ++i) {
        for (std::int64_t j = i + 1; j < n; ++j) {
          if (a[i * n + j] == 0) continue;
          const double theta = (a[j * n + j] - a[i * n + i]) / (2 * a[i * n + j]);
          const double t = std::copysign(1.0, theta) / (std::abs(theta) + std::hypot(theta, 1.0));
          const double c = 1 / std::hypot(t, 1.0);
          const double s = t * c;
          for (std::int64_t k = 0; k < n; ++k) {
            const double x = a[k * n + i];
            const double y = a[k * n + j];
            a[k * n + i] = c * x - s * y;
            a[k * n + j] = s * x + c * y;
          }
          for (std::int64_t k = 0; k < n; ++k) {
            const double x = a[i * n + k];
            const double y = a[j * n + k];
            a[i * n + k] = c * x - s * y;
            a[j * n + k] = s * x + c * y;
          }
          a[i * n + j] = 0;  // what the angle was chosen for, without its rounding
          a[j * n + i] = 0;
        }
      }
    }
    for (std::int64_t i = 0; i < n; ++i) out[i] = a[i * n + i];
    finish(out, n, scale, converged);
  }
}

double eigenvalue_tolerance(std::int64_t n) { return 8 * static_cast<double>(n) * kEps; }

}  // namespace subspace::kernels
