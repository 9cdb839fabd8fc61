#include "lora/null.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "base/error.h"

namespace subspace {
namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
/// From this shape on Stirling's series is exact to the last digits.
constexpr double kLargeShape = 20;
constexpr int kMostTerms = 1000000;

/// log(1 + mu) - mu without the loss of digits near zero.
double log1p_less(double mu) {
  if (std::abs(mu) > 0.3) return std::log1p(mu) - mu;
  // log(1 + mu) = 2 atanh(t), t = mu / (2 + mu);  2 t - mu = -t mu
  const double t = mu / (2 + mu), square = t * t;
  double sum = 0, power = t * square;
  for (int k = 3; std::abs(power / k) > kEpsilon * std::abs(sum) || k == 3; k += 2) {
    sum += power / k;
    power *= square;
    if (power == 0) break;
  }
  return 2 * sum - t * mu;
}

/// log(Gamma(a)) - [(a - 1/2) log a - a + log(2 pi) / 2]
double stirling_rest(double a) {
  const double inverse = 1 / a, square = inverse * inverse;
  return inverse *
         (1.0 / 12 +
          square *
              (-1.0 / 360 +
               square * (1.0 / 1260 +
                         square * (-1.0 / 1680 + square * (1.0 / 1188 - square * 691 / 360360)))));
}

/// x^a e^-x / Gamma(a)
double prefactor(double a, double x) {
  if (a < kLargeShape) return std::exp(a * std::log(x) - x - std::lgamma(a));
  const double mu = (x - a) / a;
  return std::sqrt(a / (2 * std::numbers::pi)) * std::exp(a * log1p_less(mu) - stirling_rest(a));
}

double lower_series(double a, double x) {
  double term = 1 / a, sum = term;
  for (int n = 1; n < kMostTerms && term > kEpsilon * sum; ++n) {
    term *= x / (a + n);
    sum += term;
  }
  return prefactor(a, x) * sum;
}

double upper_fraction(double a, double x) {
  constexpr double tiny = 1e-300;
  double b = x + 1 - a, c = 1 / tiny, d = 1 / b, h = d;
  for (int n = 1; n < kMostTerms; ++n) {
    const double an = -n * (n - a);
    b += 2;
    d = an * d + b;
    if (std::abs(d) < tiny) d = tiny;
    c = b + an / c;
    if (std::abs(c) < tiny) c = tiny;
    d = 1 / d;
    const double step = d * c;
    h *= step;
    if (std::abs(step - 1) <= kEpsilon) break;
  }
  return prefactor(a, x) * h;
}

}  // namespace

double gamma_tail(double a, double x) {
  if (!(a > 0) || !(x >= 0) || std::isinf(a)) return std::numeric_limits<double>::quiet_NaN();
  if (x == 0) return 1;
  if (std::isinf(x)) return 0;
  const double tail = x < a + 1 ? 1 - lower_series(a, x) : upper_fraction(a, x);
  return std::clamp(tail, 0.0, 1.0);
}

HaarNull haar_null(std::int64_t d, const Spectrum2& writer, const Spectrum2& reader) {
  const auto n = static_cast<double>(d);
  HaarNull null{1 / n, 0};
  if (d < 2) return null;
  auto spread = [n](const Spectrum2& s) {
    return std::max(0.0, s.square / (s.trace * s.trace) - 1 / n);
  };
  null.variance = 2 / ((n - 1) * (n + 2)) * spread(writer) * spread(reader);
  return null;
}

double haar_p_value(double score_squared, std::int64_t d, const Spectrum2& writer,
                    const Spectrum2& reader) {
  if (!(writer.trace > 0) || !(reader.trace > 0)) return 1;
  const HaarNull null = haar_null(d, writer, reader);
  // A score of an isotropic factor is 1/d however it is turned.
  if (!(null.variance > kEpsilon * null.mean * null.mean)) {
    return score_squared > null.mean * (1 + 1e-9) ? 0 : 1;
  }
  const double shape = null.mean * null.mean / null.variance;
  return gamma_tail(shape, score_squared * null.mean / null.variance);
}

std::array<double, 2> haar_band(double share, std::int64_t d, const Spectrum2& writer,
                                const Spectrum2& reader) {
  if (!(share > 0 && share < 1)) {
    fail(ErrorCode::InvalidValue, "a band of {} of a law; expected more than 0, less than 1",
         share);
  }
  if (!(writer.trace > 0) || !(reader.trace > 0)) {
    return {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::quiet_NaN()};
  }
  const HaarNull null = haar_null(d, writer, reader);
  if (!(null.variance > kEpsilon * null.mean * null.mean)) {
    return {std::sqrt(null.mean), std::sqrt(null.mean)};
  }
  const double shape = null.mean * null.mean / null.variance;
  // gamma_tail falls from 1 to 0; S^2 is at most 1, but its gamma law does not know that.
  const auto quantile = [&](double tail) {
    double low = 0, high = shape + 1;
    while (gamma_tail(shape, high) > tail) high *= 2;
    while (high - low > 1e-10 * high) {
      const double middle = (low + high) / 2;
      if (middle <= low || middle >= high) break;
      (gamma_tail(shape, middle) > tail ? low : high) = middle;
    }
    return std::sqrt(high * null.variance / null.mean);
  };
  return {quantile((1 + share) / 2), quantile((1 - share) / 2)};
}

std::vector<double> benjamini_hochberg(const std::vector<double>& p, std::int64_t total) {
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (!(p[i] >= 0 && p[i] <= 1)) {
      fail(ErrorCode::InvalidValue, "p-value {} is {}; expected a number from 0 to 1", i, p[i]);
    }
  }
  const auto tests = static_cast<double>(std::max(total, static_cast<std::int64_t>(p.size())));
  std::vector<std::size_t> order(p.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return p[a] < p[b]; });
  std::vector<double> q(p.size());
  double least = 1;
  for (std::size_t k = order.size(); k-- > 0;) {
    least = std::min(least, tests * p[order[k]] / static_cast<double>(k + 1));
    q[order[k]] = least;
  }
  return q;
}

}  // namespace subspace
