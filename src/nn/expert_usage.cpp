#include "nn/expert_usage.h"

#include <ATen/ATen.h>

#include "nn/on_device.h"

namespace subspace::nn {

ExpertUsage::ExpertUsage(std::int64_t heads, std::int64_t experts, const at::Tensor& like)
    : counts_(at::zeros({heads, experts}, like.options().dtype(at::kLong).requires_grad(false))) {}

void ExpertUsage::count(const at::Tensor& index) const {
  const at::Tensor whole = index.contiguous();
  at::Tensor counts = counts_;
  run(counts, kernels::ExpertCounts{.index = whole.const_data_ptr<std::int64_t>(),
                                    .counts = counts.mutable_data_ptr<std::int64_t>(),
                                    .tokens = index.size(0),
                                    .heads = index.size(1),
                                    .per_head = index.size(2),
                                    .experts = counts.size(1)});
}

}  // namespace subspace::nn
