#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace subspace {

/// A matrix, or a batch of them, kept as the factors of left right^T and never multiplied out:
/// left [.., m, p], right [.., n, p], one dtype and device. Batch axes broadcast (1 against H).
struct LowRank {
  at::Tensor left, right;

  std::int64_t width() const { return left.size(-1); }
  LowRank transposed() const { return {right, left}; }
  /// left right^T itself, [.., m, n]: for oracles and for cores.
  at::Tensor dense() const;
};

/// Sum of matrices of one shape: factors side by side, so that widths add. Throws InvalidShape for
/// an empty list or sizes that differ.
LowRank sum(const std::vector<LowRank>& parts);

/// (L1 R1^T)(L2 R2^T) = L1 [(R1^T L2) R2^T], the small product on the side that stays thinner.
LowRank product(const LowRank& a, const LowRank& b);

/// <A, B> = sum of the elements of (L1^T L2) o (R1^T R2), [..]: O((m + n) p1 p2). Relative error
/// about eps |A| |B| where the columns of the factors are not near cancellation.
at::Tensor inner(const LowRank& a, const LowRank& b);

/// R of X = Q R for X [.., m, p]: [.., min(m, p), p], upper triangular, R^T R = X^T X. Householder
/// reflections on the CPU, matrices in parallel over the threads: backward stable whatever the
/// condition. On a GPU triangular_by_cholesky, where that can be trusted. 2 m p^2 operations each.
at::Tensor triangular(const at::Tensor& x);

/// The same by two rounds of Cholesky (CholeskyQR2: T1 = chol(X^T X), T2 of X T1^-1, R = T2 T1):
/// matrix products throughout. Undefined if a matrix is too ill-conditioned for it, about 1e7.
/// Source: Yamamoto, Nakatsukasa, Yanagisawa and Fukaya, "Roundoff error analysis of the
/// CholeskyQR2 algorithm", ETNA 44 (2015).
at::Tensor triangular_by_cholesky(const at::Tensor& x);

/// T_L T_R^T with left = Q_L T_L and right = Q_R T_R: the small matrix with the singular values
/// (and, rotated by Q_L and Q_R, the singular vectors) of left right^T. [.., <= p, <= p]
at::Tensor core(const LowRank& a);

/// Singular values, descending, [.., min(m, n, p)]. Error about p eps sigma_1.
at::Tensor singular_values(const LowRank& a);

/// The `count` largest singular triples: left [.., m, count], values [.., count], right
/// [.., n, count]. Vectors of values below eps sigma_1 are any orthonormal ones.
struct Triples {
  at::Tensor left, values, right;
};
Triples singular_triples(const LowRank& a, std::int64_t count);

/// One entry of [c, ..] a head, c dividing `heads`: head i reads entry i / (heads / c). A view
/// where c is 1 or `heads`.
at::Tensor for_heads(const at::Tensor& x, std::int64_t heads);

/// x y matrix by matrix, [c, m, p] and [e, p, n] -> [max(c, e), m, n], where one count divides the
/// other and what is shared is not copied: heads of a group stand beside each other in one product.
at::Tensor heads_product(const at::Tensor& x, const at::Tensor& y);

}  // namespace subspace
