#include "kernels/small_eigenvalues.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/largest_entry.h"
#include "kernels/small_eigenvalues_body.h"

namespace subspace::kernels {

EigenSteps eigen_steps_portable() { return {hessenberg, francis_sweeps}; }

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

void SmallEigenvalues::find(const double* const* a, std::int64_t count, std::int64_t n,
                            std::int64_t stride) {
  n_ = n;
  width_ = n + 2;
  // Rows an odd number of cache lines apart are not all in the same few places of the cache.
  if (width_ % 4 != 2) width_ += (6 - width_ % 4) % 4;
  lanes_.assign(static_cast<std::size_t>((n + 2) * width_ * kAtOnce), 0);
  for (std::int64_t which = 0; which < kAtOnce; ++which) {
    matrices_[static_cast<std::size_t>(which)].high = -1;
    if (which < count) start(which, a[which], stride);
  }
  const EigenSteps steps = eigen_steps(isa_);
  FrancisSweeps sweeps{.h = lanes_.data(), .width = width_};
  for (;;) {
    bool any = false;
    for (std::int64_t which = 0; which < kAtOnce; ++which) {
      const bool more = shrink(which);
      sweeps.low[which] = more ? matrix(which).low : n_;
      sweeps.high[which] = more ? matrix(which).high : -1;
      if (more) shifts(which, sweeps.first + which);
      any = any || more;
    }
    if (!any) break;
    steps.sweep(sweeps);
  }
  for (std::int64_t which = 0; which < count; ++which) {
    One& one = matrices_[static_cast<std::size_t>(which)];
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (std::vector<double>* part : {&one.real, &one.imaginary}) {
      for (double& x : *part) x = one.found ? std::ldexp(x, one.exponent) : nan;
    }
  }
}

void SmallEigenvalues::start(std::int64_t which, const double* a, std::int64_t stride) {
  One& one = matrices_[static_cast<std::size_t>(which)];
  one.real.assign(static_cast<std::size_t>(n_), 0);
  one.imaginary.assign(static_cast<std::size_t>(n_), 0);
  one.exponent = one.tries = 0;
  const double largest = largest_entry(a, n_, n_, stride);
  one.found = !std::isnan(largest);
  if (!one.found || largest == 0) return;
  // A power of two brings the entries near 1 and changes no bit of them.
  std::frexp(largest, &one.exponent);
  const double down = std::ldexp(1.0, -one.exponent / 2),
               rest = std::ldexp(1.0, -one.exponent + one.exponent / 2);
  const std::int64_t width = whole_packs(n_) + 2 * kPack;
  work_.assign(static_cast<std::size_t>(n_ * width), 0);
  scratch_.resize(static_cast<std::size_t>(hessenberg_scratch(width)));
  double square = 0;
  for (std::int64_t i = 0; i < n_; ++i) {
    double* row = work_.data() + i * width;
    for (std::int64_t j = 0; j < n_; ++j) {
      row[j] = a[i * stride + j] * down * rest;
      square += row[j] * row[j];
    }
  }
  eigen_steps(isa_).hessenberg({work_.data(), n_, width, scratch_.data()});
  for (std::int64_t i = 0; i < n_; ++i) {
    const double* row = work_.data() + i * width;
    for (std::int64_t j = i > 0 ? i - 1 : 0; j < n_; ++j) h(which, i, j) = row[j];
  }
  one.norm = std::sqrt(square);
  one.high = n_ - 1;
}

bool SmallEigenvalues::negligible(std::int64_t which, std::int64_t k) const {
  const auto at = [&](std::int64_t i, std::int64_t j) { return h(which, i, j); };
  const One& one = matrix(which);
  const double below = std::abs(at(k, k - 1));
  if (below <= std::numeric_limits<double>::min() / kUlp) return true;
  if (one.tries > kStrictTries) return below <= kUlp * one.norm;
  double size = std::abs(at(k, k)) + std::abs(at(k - 1, k - 1));
  if (size == 0) size = one.norm;
  if (!(below <= kUlp * size)) return false;
  const double above = std::abs(at(k - 1, k));
  const double apart = std::abs(at(k - 1, k - 1) - at(k, k));
  const double high = std::max(below, above), low = std::min(below, above);
  const double own = std::max(std::abs(at(k, k)), apart);
  const double other = std::min(std::abs(at(k, k)), apart);
  return low * (high / (own + high)) <=
         std::max(std::numeric_limits<double>::min(), kUlp * (other * (own / (own + high))));
}

/// Of the block of rows and columns high - 1, high.
void SmallEigenvalues::last_two(std::int64_t which) {
  One& one = matrices_[static_cast<std::size_t>(which)];
  const std::int64_t high = one.high;
  const double a = h(which, high - 1, high - 1), b = h(which, high - 1, high),
               c = h(which, high, high - 1), d = h(which, high, high);
  const double half = (a - d) / 2, mean = (a + d) / 2, square = half * half + b * c;
  const auto first = static_cast<std::size_t>(high - 1);
  if (square < 0) {
    one.real[first] = one.real[first + 1] = mean;
    one.imaginary[first] = std::sqrt(-square);
    one.imaginary[first + 1] = -one.imaginary[first];
    return;
  }
  // The one further from d without cancellation, the other from the product of the two.
  const double far = half + std::copysign(std::sqrt(square), half);
  one.real[first] = d + far;
  one.real[first + 1] = far == 0 ? d : d - b * c / far;
}

bool SmallEigenvalues::shrink(std::int64_t which) {
  One& one = matrices_[static_cast<std::size_t>(which)];
  while (one.high >= 0) {
    one.low = one.high;
    while (one.low > 0 && !negligible(which, one.low)) --one.low;
    if (one.low > 0) h(which, one.low, one.low - 1) = 0;
    if (one.low + 1 < one.high) {
      if (++one.tries <= kMostOfOne) return true;
      one.found = false;
      one.high = -1;
      return false;
    }
    if (one.low == one.high) {
      one.real[static_cast<std::size_t>(one.high)] = h(which, one.high, one.high);
    } else {
      last_two(which);
    }
    one.high = one.low - 1;
    one.tries = 0;
  }
  return false;
}

/// The shifted product's first column, its elements kAtOnce apart.
void SmallEigenvalues::shifts(std::int64_t which, double* first) const {
  const auto at = [&](std::int64_t i, std::int64_t j) { return h(which, i, j); };
  const One& one = matrix(which);
  const std::int64_t low = one.low, high = one.high;
  double sum = at(high - 1, high - 1) + at(high, high);
  double product =
      at(high - 1, high - 1) * at(high, high) - at(high - 1, high) * at(high, high - 1);
  if (one.tries % 10 == 0) {
    // Where shifts of the matrix itself go in circles.
    const double size = std::abs(at(high, high - 1)) + std::abs(at(high - 1, high - 2));
    sum = 1.5 * size;
    product = size * size;
  }
  const double x = at(low, low), next = at(low + 1, low);
  first[0] = (x * (x - sum) + product) / next + at(low, low + 1);
  first[kAtOnce] = x + at(low + 1, low + 1) - sum;
  first[2 * kAtOnce] = at(low + 2, low + 1);
}

}  // namespace subspace::kernels
