#pragma once

#include <ATen/core/Tensor.h>

#include "spectrum/product.h"

namespace subspace {

// Of each, one triangle is computed and mirrored. The own kernel needs half the operations of a
// product and its result is symmetric to the bit; the library gets block rows of the upper triangle
// and (1 + 1/blocks) / 2 of them. `by` is for tests: without it product.h's rule decides.

/// X^T X of a matrix [m, n]: n^2 m operations.
at::Tensor gram_of_columns(const at::Tensor& x);
at::Tensor gram_of_columns(const at::Tensor& x, Multiplier by);

/// X^T diag(w) X for X [m, n] and w [m]: rows scaled by sqrt(w) without a scaled copy of X.
at::Tensor gram_of_columns(const at::Tensor& x, const at::Tensor& w);
at::Tensor gram_of_columns(const at::Tensor& x, const at::Tensor& w, Multiplier by);

/// sum_h X_h^T W_h X_h for X [H, k, n] and symmetric W [H, k, k]; the weighted blocks W_h X_h are
/// formed a few at a time.
at::Tensor weighted_gram(const at::Tensor& x, const at::Tensor& w);
at::Tensor weighted_gram(const at::Tensor& x, const at::Tensor& w, Multiplier by);

/// X_h^T X_h for each head, [H, m, n] -> [H, n, n].
at::Tensor gram_of_heads(const at::Tensor& x);
at::Tensor gram_of_heads(const at::Tensor& x, Multiplier by);

}  // namespace subspace
