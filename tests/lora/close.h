#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace subspace::testing {

at::Tensor normal(const std::vector<std::int64_t>& shape);

/// A [rows, columns] matrix, written out.
at::Tensor matrix(const std::vector<std::vector<double>>& rows);

/// |found - expected| <= bound times the largest element of expected; NaN fails.
void expect_close(const at::Tensor& found, const at::Tensor& expected, double bound = 1e-12);

}  // namespace subspace::testing
