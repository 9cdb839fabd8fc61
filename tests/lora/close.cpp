#include "lora/close.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace subspace::testing {

at::Tensor normal(const std::vector<std::int64_t>& shape) { return at::randn(shape, at::kDouble); }

at::Tensor matrix(const std::vector<std::vector<double>>& rows) {
  std::vector<at::Tensor> out;
  for (const auto& row : rows) out.push_back(at::tensor(row, at::kDouble));
  return at::stack(out);
}

void expect_close(const at::Tensor& found, const at::Tensor& expected, double bound) {
  ASSERT_EQ(found.sizes(), expected.sizes());
  if (expected.numel() == 0) return;
  const double error = (found - expected).abs().max().item<double>();
  const double most = bound * std::max(1e-300, expected.abs().max().item<double>());
  EXPECT_TRUE(error <= most) << error << " > " << most;
}

}  // namespace subspace::testing
