#include "kernels/small_eigenvalues.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/largest_entry.h"
#include "kernels/small_eigenvalues_body.h"

namespace subspace::kernels {

EigenSteps eigen_steps_portable() { return {hessenberg, francis_sweep}; }

namespace {

/// Sweeps for one eigenvalue or pair; every tenth has a shift of its own.
constexpr int kMostOfOne = 300;
/// From so many on, what is small beside the matrix is dropped: among equal eigenvalues each
/// sweep's rounding is as large as the entries that are to vanish beside their neighbours.
constexpr int kStrictTries = 20;
constexpr double kUlp = std::numeric_limits<double>::epsilon();

EigenSteps eigen_steps(Isa isa) {
#if defined(__x86_64__)
  if (isa != Isa::portable) return eigen_steps_avx2();
#else
  (void)isa;
#endif
  return eigen_steps_portable();
}

}  // namespace

bool SmallEigenvalues::find(const double* a, std::int64_t n, std::int64_t stride) {
  n_ = n;
  width_ = whole_packs(n) + 2 * kPack;
  const auto size = [](std::int64_t x) { return static_cast<std::size_t>(x); };
  real_.assign(size(n), 0);
  imaginary_.assign(size(n), 0);
  const double largest = largest_entry(a, n, n, stride);
  bool finite = !std::isnan(largest);
  if (finite && largest == 0) return true;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  int exponent = 0;
  if (finite) {
    std::frexp(largest, &exponent);
    work_.assign(size(n * width_), 0);
    scratch_.assign(size(3 * width_), 0);
    double square = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        h(i, j) = std::ldexp(a[i * stride + j], -exponent);
        square += h(i, j) * h(i, j);
      }
    }
    eigen_steps(isa_).hessenberg({work_.data(), n, width_, scratch_.data()});
    finite = iterate(std::sqrt(square));
  }
  for (std::vector<double>* part : {&real_, &imaginary_}) {
    for (double& x : *part) x = finite ? std::ldexp(x, exponent) : nan;
  }
  return finite;
}

bool SmallEigenvalues::negligible(std::int64_t k, double norm, int tries) const {
  const double below = std::abs(h(k, k - 1));
  if (below <= std::numeric_limits<double>::min() / kUlp) return true;
  if (tries > kStrictTries) return below <= kUlp * norm;
  double size = std::abs(h(k, k)) + std::abs(h(k - 1, k - 1));
  if (size == 0) size = norm;
  if (!(below <= kUlp * size)) return false;
  const double above = std::abs(h(k - 1, k));
  const double apart = std::abs(h(k - 1, k - 1) - h(k, k));
  const double high = std::max(below, above), low = std::min(below, above);
  const double own = std::max(std::abs(h(k, k)), apart);
  const double other = std::min(std::abs(h(k, k)), apart);
  return low * (high / (own + high)) <=
         std::max(std::numeric_limits<double>::min(), kUlp * (other * (own / (own + high))));
}

/// Of the block of rows and columns high - 1, high.
void SmallEigenvalues::last_two(std::int64_t high) {
  const double a = h(high - 1, high - 1), b = h(high - 1, high), c = h(high, high - 1),
               d = h(high, high);
  const double half = (a - d) / 2, mean = (a + d) / 2, square = half * half + b * c;
  const auto first = static_cast<std::size_t>(high - 1);
  if (square < 0) {
    real_[first] = real_[first + 1] = mean;
    imaginary_[first] = std::sqrt(-square);
    imaginary_[first + 1] = -imaginary_[first];
    return;
  }
  // The one further from d without cancellation, the other from the product of the two.
  const double far = half + std::copysign(std::sqrt(square), half);
  real_[first] = d + far;
  real_[first + 1] = far == 0 ? d : d - b * c / far;
}

bool SmallEigenvalues::iterate(double norm) {
  const EigenSteps steps = eigen_steps(isa_);
  std::int64_t high = n_ - 1;
  int tries = 0;
  while (high >= 0) {
    std::int64_t low = high;
    while (low > 0 && !negligible(low, norm, tries)) --low;
    if (low > 0) h(low, low - 1) = 0;
    if (low + 1 >= high) {
      if (low == high) {
        real_[static_cast<std::size_t>(high)] = h(high, high);
      } else {
        last_two(high);
      }
      high = low - 1;
      tries = 0;
      continue;
    }
    if (++tries > kMostOfOne) return false;
    double sum = h(high - 1, high - 1) + h(high, high);
    double product = h(high - 1, high - 1) * h(high, high) - h(high - 1, high) * h(high, high - 1);
    if (tries % 10 == 0) {
      // Where shifts of the matrix itself go in circles.
      const double size = std::abs(h(high, high - 1)) + std::abs(h(high - 1, high - 2));
      sum = 1.5 * size;
      product = size * size;
    }
    const double first = h(low, low), next = h(low + 1, low);
    steps.sweep({.h = work_.data(),
                 .width = width_,
                 .low = low,
                 .high = high,
                 .x = (first * (first - sum) + product) / next + h(low, low + 1),
                 .y = first + h(low + 1, low + 1) - sum,
                 .z = h(low + 2, low + 1)});
  }
  return true;
}

}  // namespace subspace::kernels
