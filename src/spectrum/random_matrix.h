#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace subspace {

/// The singular values that chance gives a product X_1 X_2 ... X_K of independent Gaussian
/// matrices, X_k of shape dims[k-1] x dims[k], entries of variance 1/dims[k]: min(dims) of them
/// followed by zeros up to min(first, last), descending.
///
/// Computed, not sampled. With N0 = dims[0], psi(z) = sum_k m_k z^-k the moment series of the
/// eigenvalues of X X^T obeys
///   z = ((1 + psi) / psi) prod_k (1 + (N0 / N_k) psi)
/// (free multiplicative convolution of Marchenko-Pastur laws; Burda et al., Phys. Rev. E 82,
/// 061114, 2010). The density at x is -Im g(x + i0) / pi, g = (1 + psi) / x; its quantiles at (j -
/// 1/2) / n are the values returned. Exact as all dimensions grow; within one rank in a hundred
/// from 32 on. O(n log n) or so; milliseconds. Throws InvalidValue for fewer than two dimensions or
/// one below 1.
std::vector<double> random_spectrum(std::span<const std::int64_t> dims);

}  // namespace subspace
