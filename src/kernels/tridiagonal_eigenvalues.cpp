#include "kernels/tridiagonal_eigenvalues.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace subspace::kernels {
namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();
constexpr int kMostSteps = 60;  // QR steps for one eigenvalue; two or three are usual

/// One implicit QR step on rows first..last of T.
void qr_step(double* d, double* e, std::int64_t first, std::int64_t last) {
  const double half = (d[last - 1] - d[last]) / 2;
  const double off = e[last - 1];
  const double shift =
      d[last] - off * (off / (half + std::copysign(std::sqrt(half * half + off * off), half)));
  double x = d[first] - shift;
  double z = e[first];
  for (std::int64_t k = first; k < last; ++k) {
    const double r = std::sqrt(x * x + z * z);
    const double c = r == 0 ? 1 : x / r;
    const double s = r == 0 ? 0 : z / r;
    if (k > first) e[k - 1] = r;
    // The rotated 2 x 2 block, as a change of the diagonal that keeps its sum exactly.
    const double change = s * (s * (d[k + 1] - d[k]) + 2 * c * e[k]);
    const double middle = c * (s * (d[k + 1] - d[k])) + (c * c - s * s) * e[k];
    d[k] += change;
    d[k + 1] -= change;
    e[k] = middle;
    if (k + 1 < last) {
      x = e[k];
      z = s * e[k + 1];
      e[k + 1] *= c;
    }
  }
}

}  // namespace

bool tridiagonal_eigenvalues(double* d, double* e, std::int64_t n) {
  double norm = 0;
  for (std::int64_t i = 0; i < n; ++i) norm = std::max(norm, std::abs(d[i]));
  for (std::int64_t i = 0; i + 1 < n; ++i) norm = std::max(norm, std::abs(e[i]));
  // The absolute part ends the iteration where neighbouring diagonal entries vanish.
  const auto negligible = [&](std::int64_t i) {
    return std::abs(e[i]) <= kEps * (std::abs(d[i]) + std::abs(d[i + 1])) + kEps * kEps * norm;
  };
  int steps = 0;
  for (std::int64_t last = n - 1; last > 0;) {
    if (negligible(last - 1)) {
      --last;
      steps = 0;
      continue;
    }
    if (++steps > kMostSteps) return false;
    std::int64_t first = last - 1;
    while (first > 0 && !negligible(first - 1)) --first;
    qr_step(d, e, first, last);
  }
  return true;
}

}  // namespace subspace::kernels
