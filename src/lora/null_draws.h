#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace subspace {

/// What two factors scored, and what their null depends on.
struct HaarQuestion {
  at::Tensor writer, reader;  ///< [a], [b]: eigenvalues of P_w and P_r that are not zero, float64
  double score_squared = 0;   ///< S^2 = tr(P_w P_r) / (tr P_w tr P_r)
};

/// Chances of scores at least as large where the relative orientation of the two factors in R^d is
/// uniformly random, by drawing it: (1 + draws that score as much) / (1 + draws), never zero. The
/// check of haar_p_value's gamma law (null.h), which assumes the law's shape.
///
///   S^2 = sum_ij w_i r_j T_ij^2 / (sum w sum r),   T the upper left block of a random orthogonal
///   matrix
///
/// All questions share the draws. A block [a, b] is G_1 R^-1 with R^T R = G_1^T G_1 + L L^T, G_1
/// normal, L Bartlett's factor of a Wishart matrix of d - a degrees of freedom: O(a b^2 + b^3) a
/// draw, whatever d (where d < a + b, from d rows of normal numbers). NaN where a factor is zero or
/// the score is NaN.
/// The same seed gives the same draws. Sources: Muirhead, Aspects of Multivariate Statistical
/// Theory, theorems 3.2.1 and 3.2.14. Throws InvalidValue for more eigenvalues than d.
std::vector<double> haar_p_by_draws(std::int64_t d, const std::vector<HaarQuestion>& questions,
                                    std::int64_t draws, std::uint64_t seed);

}  // namespace subspace
