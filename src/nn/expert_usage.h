#pragma once

#include <ATen/core/Tensor.h>

namespace subspace::nn {

/// How often each expert was chosen since somebody last set it to zero, counted on the device and
/// without waiting for it: [heads, experts] int64. A mixture of experts has one head.
class ExpertUsage {
 public:
  ExpertUsage() = default;
  ExpertUsage(std::int64_t heads, std::int64_t experts, const at::Tensor& like);
  /// index [tokens, heads, k].
  void count(const at::Tensor& index) const;
  const at::Tensor& counts() const { return counts_; }

 private:
  at::Tensor counts_;
};

}  // namespace subspace::nn
