#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace subspace {

/// Regularised upper incomplete gamma function Q(a, x) = Gamma(a, x) / Gamma(a): the chance that a
/// gamma variable of shape a and scale 1 exceeds x. a > 0, x >= 0; NaN for anything else.
///
/// Power series of P = 1 - Q for x < a + 1 (DLMF 8.11.4), continued fraction of Q above it (DLMF
/// 8.9.2, evaluated as Lentz does); the factor x^a e^-x / Gamma(a) through log(1 + mu) - mu with
/// mu = (x - a) / a and Stirling's series, so that large shapes keep their digits and small tails
/// their relative precision: about 1e-13 for a below 1e4 and as far as the tail can be represented.
double gamma_tail(double a, double x);

/// What of a factor matters to how it meets another one: of P = M^T M (or N N^T) the trace and the
/// squared Frobenius norm.
struct Spectrum2 {
  double trace = 0;   ///< ||M||_F^2
  double square = 0;  ///< ||M^T M||_F^2
};

/// S^2 = tr(P_w P_r) / (tr P_w tr P_r) where the relative orientation of the two factors in R^d is
/// uniformly random (Haar), whatever their spectra:
///
///   E[S^2] = 1/d
///   Var[S^2] = 2 (||P_w||_F^2 - tr^2 P_w / d)(||P_r||_F^2 - tr^2 P_r / d)
///              / ((d - 1)(d + 2) (tr P_w tr P_r)^2)
struct HaarNull {
  double mean = 0, variance = 0;
};
HaarNull haar_null(std::int64_t d, const Spectrum2& writer, const Spectrum2& reader);

/// Chance of an S^2 at least as large under that null, by the gamma law of its mean and variance:
/// tail quantiles agree with Monte Carlo within a few percent for ordinary spectra, up to 8 % at
/// 0.99 for spectra of very few directions. 1 where a factor is zero; where the variance is zero
/// (one of them is isotropic) 1 or, above the mean by more than rounding, 0.
double haar_p_value(double score_squared, std::int64_t d, const Spectrum2& writer,
                    const Spectrum2& reader);

/// The S (not squared) between which that null has the middle `share` of its law, in (0, 1): roots
/// of the gamma law's quantiles, to 1e-9 of themselves. Both 1/sqrt(d) where the variance is zero,
/// NaN where a factor is zero.
std::array<double, 2> haar_band(double share, std::int64_t d, const Spectrum2& writer,
                                const Spectrum2& reader);

/// Benjamini and Hochberg's adjusted p-values, in the order of the input:
///   q_(k) = min_{j >= k} min(1, total p_(j) / j),  p_(1) <= p_(2) <= ...
/// `total`: tests made, if more than were handed in (those must be the smallest for q to be exact;
/// otherwise q is an upper bound); 0: as many as p. Throws InvalidValue for a p outside [0, 1].
std::vector<double> benjamini_hochberg(const std::vector<double>& p, std::int64_t total = 0);

}  // namespace subspace
