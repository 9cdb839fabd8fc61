#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace subspace {

/// Eigenvalues of symmetric matrices, [.., n, n] float64 -> [.., n], descending. Only the lower
/// triangle is read. Accuracy: about n eps |largest|. Throws NotFinite, with the matrix's place in
/// the batch, where one has a NaN or an infinity.
at::Tensor symmetric_eigenvalues(const at::Tensor& a);

/// sqrt of the eigenvalues of a Gram matrix, i.e. singular values, descending; values that rounding
/// left below zero become zero. Resolves singular values down to about 1e-8 of the largest.
at::Tensor singular_values_of_gram(const at::Tensor& gram);

/// L with L L^T = G for positive semidefinite G, [.., n, n]; rank-deficient and zero G included.
/// Only the lower triangle is read. Throws NotFinite as above.
at::Tensor psd_factor(const at::Tensor& gram);

/// Whether matrices of width n on the CPU go to the project's own kernels: their plain loops win
/// while a matrix stays in the second-level cache, LAPACK's blocks beyond.
bool own_kernels_for(std::int64_t n);

}  // namespace subspace
