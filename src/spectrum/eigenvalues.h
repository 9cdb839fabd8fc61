#pragma once

#include <ATen/core/Tensor.h>

namespace subspace {

/// Eigenvalues of symmetric matrices, [.., n, n] float64 -> [.., n], descending. Only the lower
/// triangle is read. Accuracy: about n eps |largest|.
at::Tensor symmetric_eigenvalues(const at::Tensor& a);

/// sqrt of the eigenvalues of a Gram matrix, i.e. singular values, descending; values that rounding
/// left below zero become zero. Resolves singular values down to about 1e-8 of the largest.
at::Tensor singular_values_of_gram(const at::Tensor& gram);

/// L with L L^T = G for positive semidefinite G, [.., n, n]; rank-deficient and zero G included.
at::Tensor psd_factor(const at::Tensor& gram);

}  // namespace subspace
