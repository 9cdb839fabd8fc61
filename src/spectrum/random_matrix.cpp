#include "spectrum/random_matrix.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "base/error.h"

namespace subspace {
namespace {

/// With psi = -u, u in (0, 1) along the real axis outside the support; inside it psi is complex.
/// psi is parametrised by its argument: psi = rho e^{i phi}. For each phi the condition Im z = 0
/// fixes rho, and then x = z(psi) is real: the support is swept without solving for roots in x.
class Law {
 public:
  explicit Law(std::vector<double> ratios) : ratios_(std::move(ratios)) {}

  std::complex<double> z(std::complex<double> psi) const {
    std::complex<double> value = (1.0 + psi) / psi;
    for (const double c : ratios_) value *= 1.0 + c * psi;
    return value;
  }

  /// Sum of arguments of the factors of z at psi = rho e^{i phi}: continuous in rho, and zero where
  /// z is real and positive.
  double argument(double rho, double phi) const {
    const double re = rho * std::cos(phi), im = rho * std::sin(phi);
    double sum = std::atan2(im, 1 + re) - phi;
    for (const double c : ratios_) sum += std::atan2(c * im, 1 + c * re);
    return sum;
  }

  /// rho with argument(rho, phi) = 0: it grows from -phi at 0 to (K) phi at infinity.
  double radius(double phi) const {
    double low = -200, high = 200;  // logarithms
    for (int step = 0; step < 200; ++step) {
      const double middle = (low + high) / 2;
      (argument(std::exp(middle), phi) < 0 ? low : high) = middle;
    }
    return std::exp((low + high) / 2);
  }

 private:
  std::vector<double> ratios_;
};

}  // namespace

std::vector<double> random_spectrum(std::span<const std::int64_t> dims) {
  if (dims.size() < 2 || *std::min_element(dims.begin(), dims.end()) < 1) {
    fail(ErrorCode::InvalidValue, "a chain of {} dimensions; expected at least two, each from 1",
         dims.size());
  }
  // The nonzero eigenvalues do not change when X X^T becomes X^T X or the chain is rotated, so that
  // the smallest dimension can come first: then no eigenvalue is zero. The spectrum of a product of
  // Gaussians depends on the multiset of dimensions alone, up to the scale fixed below.
  std::vector<std::int64_t> sorted(dims.begin(), dims.end());
  std::sort(sorted.begin(), sorted.end());
  const auto count = static_cast<std::size_t>(sorted[0]);
  std::vector<double> ratios;
  for (std::size_t k = 1; k < sorted.size(); ++k) {
    ratios.push_back(static_cast<double>(sorted[0]) / static_cast<double>(sorted[k]));
  }
  const Law law(ratios);

  // Points of the support with the density there, on a grid that is dense at both edges.
  constexpr int kPoints = 4000;
  std::vector<double> x, density;
  for (int i = 1; i < kPoints; ++i) {
    const double t = static_cast<double>(i) / kPoints;
    const double phi = std::numbers::pi * (1 - std::cos(std::numbers::pi * t)) / 2;
    const std::complex<double> psi = std::polar(law.radius(phi), phi);
    const double at = law.z(psi).real();
    if (!std::isfinite(at) || at <= 0) continue;
    // |Im psi| / (pi x): g = (1 + psi) / x.
    x.push_back(at);
    density.push_back(std::abs(psi.imag()) / (std::numbers::pi * at));
  }
  std::vector<std::size_t> order(x.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return x[a] < x[b]; });

  std::vector<double> at(order.size()), mass(order.size(), 0);
  for (std::size_t i = 0; i < order.size(); ++i) {
    at[i] = x[order[i]];
    if (i > 0) {
      const double mean = (density[order[i]] + density[order[i - 1]]) / 2;
      mass[i] = mass[i - 1] + mean * (at[i] - at[i - 1]);
    }
  }
  // Quantiles, largest first; the grid's total is 1 up to its own error, which is divided out.
  std::vector<double> values;
  std::size_t i = at.size() - 1;
  for (std::size_t j = 0; j < count; ++j) {
    const double target =
        mass.back() * (1 - (static_cast<double>(j) + 0.5) / static_cast<double>(count));
    while (i > 1 && mass[i - 1] > target) --i;
    const double span = mass[i] - mass[i - 1];
    const double part = span > 0 ? (target - mass[i - 1]) / span : 0;
    values.push_back(at[i - 1] + std::clamp(part, 0.0, 1.0) * (at[i] - at[i - 1]));
  }
  // E ||X||_F^2 / dims[0] = 1 for the variances stated; sum of eigenvalues = dims[0].
  double sum = 0;
  for (const double value : values) sum += value;
  const double scale = static_cast<double>(dims.front()) / sum;
  for (double& value : values) value = std::sqrt(value * scale);
  values.resize(static_cast<std::size_t>(std::min(dims.front(), dims.back())), 0.0);
  return values;
}

}  // namespace subspace
