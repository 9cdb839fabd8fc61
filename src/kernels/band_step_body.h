#pragma once

// Compiled once for each instruction set. Everything is in an anonymous namespace and nothing from
// the standard library is a template, so that no copy can leave its object file.

#include <cmath>

#include "kernels/band_step.h"
#include "kernels/packs.h"

namespace subspace::kernels {
namespace {

inline double dot(const double* x, const double* y, std::int64_t n) {
  const std::int64_t whole = n / (2 * kPack) * (2 * kPack);
  double total = packs_dot<2>(x, y, whole);
  for (std::int64_t i = whole; i < n; ++i) total += x[i] * y[i];
  return total;
}

/// y += s x
inline void add_scaled(double* y, double s, const double* x, std::int64_t n) {
  Pack a, b;
  std::int64_t i = 0;
  for (; i + kPack <= n; i += kPack) {
    load(a, x + i);
    load(b, y + i);
    b += s * a;
    store(y + i, b);
  }
  for (; i < n; ++i) y[i] += s * x[i];
}

/// x <- (beta, 0, .. 0) by I - tau v v^T with v[0] = 1; returns tau.
inline double reflect(double* x, std::int64_t m, double* v) {
  const double tail = dot(x + 1, x + 1, m - 1);
  v[0] = 1;
  if (tail == 0) {
    for (std::int64_t i = 1; i < m; ++i) v[i] = 0;
    return 0;
  }
  const double beta = -__builtin_copysign(__builtin_sqrt(x[0] * x[0] + tail), x[0]);
  const double inverse = 1 / (x[0] - beta);
  const double tau = (beta - x[0]) / beta;
  x[0] = beta;
  for (std::int64_t i = 1; i < m; ++i) {
    v[i] = x[i] * inverse;
    x[i] = 0;
  }
  return tau;
}

/// w <- D v for the m x m block D at (row, row), of which the lower triangle is stored: one pass
/// over each column for both of its uses.
inline void multiply_symmetric(const double* d, std::int64_t stride, std::int64_t m,
                               const double* v, double* w) {
  for (std::int64_t i = 0; i < m; ++i) w[i] = 0;
  for (std::int64_t j = 0; j < m; ++j, d += stride) {
    const std::int64_t rest = m - j - 1;
    const double* x = v + j + 1;
    double* y = w + j + 1;
    Pack sum = {}, a, b, c;
    std::int64_t i = 0;
    for (; i + kPack <= rest; i += kPack) {
      load(a, d + 1 + i);
      load(b, x + i);
      load(c, y + i);
      sum += a * b;
      c += a * v[j];
      store(y + i, c);
    }
    double total = (sum[0] + sum[1]) + (sum[2] + sum[3]) + d[0] * v[j];
    for (; i < rest; ++i) {
      total += d[1 + i] * x[i];
      y[i] += d[1 + i] * v[j];
    }
    w[j] += total;
  }
}

/// D <- H D H = D - v w^T - w v^T with w = tau (D v - tau/2 (v . D v) v).
inline void both_sides(double* d, std::int64_t stride, std::int64_t m, const double* v, double tau,
                       double* w) {
  multiply_symmetric(d, stride, m, v, w);
  const double half = tau / 2 * dot(v, w, m);
  for (std::int64_t i = 0; i < m; ++i) w[i] = tau * (w[i] - half * v[i]);
  for (std::int64_t j = 0; j < m; ++j, d += stride) {
    const std::int64_t size = m - j;
    Pack a, x, y;
    std::int64_t i = 0;
    for (; i + kPack <= size; i += kPack) {
      load(a, d + i);
      load(x, v + j + i);
      load(y, w + j + i);
      a -= x * w[j] + y * v[j];
      store(d + i, a);
    }
    for (; i < size; ++i) d[i] -= v[j + i] * w[j] + w[j + i] * v[j];
  }
}

/// u = tau B v for B [m, width], a few rows of u in registers at a time. Column j + 1 begins
/// `step` after column j.
inline void multiply(const double* b, std::int64_t step, std::int64_t m, std::int64_t width,
                     const double* v, double tau, double* u) {
  std::int64_t i = 0;
  for (; i + 4 * kPack <= m; i += 4 * kPack) {
    Pack sum[4] = {}, a;
    const double* x = b + i;
    for (std::int64_t j = 0; j < width; ++j, x += step) {
      for (int k = 0; k < 4; ++k) {
        load(a, x + k * kPack);
        sum[k] += a * v[j];
      }
    }
    for (int k = 0; k < 4; ++k) {
      sum[k] *= tau;
      store(u + i + k * kPack, sum[k]);
    }
  }
  for (; i < m; ++i) {
    double sum = 0;
    for (std::int64_t j = 0; j < width; ++j) sum += b[j * step + i] * v[j];
    u[i] = tau * sum;
  }
}

inline double band_step(const BandStep& p) {
  const std::int64_t stride = 2 * p.width;
  double* d = p.band + p.row * stride;
  const std::int64_t left = p.n - p.row;
  const std::int64_t m = left < p.width ? left : p.width;
  double tau = p.tau;
  if (p.first) tau = reflect(d - stride + 1, m, p.v);
  if (tau != 0) both_sides(d, stride, m, p.v, tau, p.w);
  const std::int64_t under = left - p.width;
  if (under <= 0) return 0;
  const std::int64_t below = under < p.width ? under : p.width;
  double* b = d + p.width;
  const std::int64_t step = stride - 1;  // one column on and one row up
  if (tau != 0) {
    multiply(b, step, below, p.width, p.v, tau, p.w);
    add_scaled(b, -p.v[0], p.w, below);
  }
  const double next = reflect(b, below, p.next);
  for (std::int64_t j = 1; j < p.width; ++j) {
    double* x = b + j * step;
    if (tau != 0) add_scaled(x, -p.v[j], p.w, below);
    if (next != 0) add_scaled(x, -next * dot(p.next, x, below), p.next, below);
  }
  for (std::int64_t i = 0; i < below; ++i) p.v[i] = p.next[i];
  return next;
}

}  // namespace
}  // namespace subspace::kernels
