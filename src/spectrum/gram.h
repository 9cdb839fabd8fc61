#pragma once

#include <ATen/core/Tensor.h>

namespace subspace {

/// X^T X of a matrix [m, n], computed in block rows of the upper triangle and mirrored:
/// n^2 m (1 + 1/blocks) operations instead of 2 n^2 m, no temporary larger than a block column.
at::Tensor gram_of_columns(const at::Tensor& x);

/// X^T diag(w) X for X [m, n] and w [m], in the same way: rows scaled by sqrt(w) without a scaled
/// copy of X.
at::Tensor gram_of_columns(const at::Tensor& x, const at::Tensor& w);

/// sum_h X_h^T W_h X_h for X [H, k, n] and symmetric W [H, k, k], in the same way; the weighted
/// blocks W_h X_h are formed a block column at a time.
at::Tensor weighted_gram(const at::Tensor& x, const at::Tensor& w);

/// X_h^T X_h for each head, [H, m, n] -> [H, n, n].
at::Tensor gram_of_heads(const at::Tensor& x);

}  // namespace subspace
