#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace subspace {

/// Eigenvalues of symmetric matrices, [.., n, n] float64 -> [.., n], descending. Only the lower
/// triangle is read. Accuracy: about n eps |largest|. Throws NotFinite, with the matrix's place in
/// the batch, where one has a NaN or an infinity.
at::Tensor symmetric_eigenvalues(const at::Tensor& a);

/// sqrt of the eigenvalues of a Gram matrix, i.e. singular values, descending; values that rounding
/// left below zero become zero. Resolves singular values down to about 1e-8 of the largest. The
/// matrix is used up (overwritten), so that a large one is not in memory twice.
at::Tensor singular_values_of_gram(at::Tensor gram);

/// The same of several matrices on one device, on the CPU; on a GPU side by side, on streams and
/// threads of their own: one alone leaves most of the device idle. The matrices are used up.
std::vector<at::Tensor> singular_values_of_grams(std::vector<at::Tensor> grams);

/// L with L L^T = G for positive semidefinite G, [.., n, n]; rank-deficient and zero G included.
/// Only the lower triangle is read. Throws NotFinite as above.
at::Tensor psd_factor(const at::Tensor& gram);

/// Who finds the eigenvalues of an n x n matrix. On the CPU plain loops win while a matrix stays in
/// the second-level cache, then LAPACK, then the reduction to a band by matrix products; on a GPU
/// own kernels win while a matrix fits the shared memory of a block.
enum class EigenRoute { own, library, band };
EigenRoute eigen_route(const at::Device& device, std::int64_t n);

}  // namespace subspace
