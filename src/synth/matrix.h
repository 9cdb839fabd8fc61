#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <vector>

namespace subspace {

/// Key of a tensor's random numbers: a tensor keeps its values whatever others are made.
std::uint64_t tensor_key(std::uint64_t seed, std::string_view name);

/// Row `row` of a matrix of independent normal numbers times `std`: a function of (key, row) alone.
void gaussian_row(std::uint64_t key, std::int64_t row, double std, std::int64_t cols, double* out);

/// W = U diag(s) V^T, [m, n] float64, with U [m, k], V [n, k] uniformly random orthonormal.
at::Tensor matrix_with_spectrum(std::uint64_t key, std::int64_t m, std::int64_t n,
                                const std::vector<double>& s, int threads);

}  // namespace subspace
