#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include "kernels/batch_norm.h"
#include "kernels/ethos_experts.h"
#include "kernels/expert_grad.h"
#include "kernels/expert_lists.h"
#include "kernels/expert_table.h"
#include "kernels/product_key_topk.h"
#include "kernels/stored_experts.h"

namespace subspace::ops {

/// Around an operator's work: its device is the current one, and products inside it keep their
/// types (autocast has had its say before).
struct Scope {
  explicit Scope(const at::Tensor& where) : device(where.device()) {}
  c10::OptionalDeviceGuard device;
  c10::impl::ExcludeDispatchKeyGuard plain{c10::autocast_dispatch_keyset};
};

/// The kernel of that name on the device of `where`, on its current stream or PyTorch's number of
/// threads. A build without CUDA refuses CUDA tensors.
void run(const at::Tensor& where, const kernels::ProductKeyTopk& p);
void run(const at::Tensor& where, const kernels::ProductKeyTopkGrad& p);
void run(const at::Tensor& where, const kernels::ColumnMoments& p);
void run(const at::Tensor& where, const kernels::BatchNormHalves& p);
void run(const at::Tensor& where, const kernels::BatchNormHalvesGrad& p);
void run(const at::Tensor& where, const kernels::EthosExperts& p);
void run(const at::Tensor& where, const kernels::EthosExpertsGrad& p);
void run(const at::Tensor& where, const kernels::StoredExperts& p);
void run(const at::Tensor& where, const kernels::StoredExpertsGrad& p);
void run(const at::Tensor& where, const kernels::ExpertLists& p);
void run(const at::Tensor& where, const kernels::DistinctExperts& p);
void run(const at::Tensor& where, const kernels::GatherRows& p);
void run(const at::Tensor& where, const kernels::ExpertGelu& p);
void run(const at::Tensor& where, const kernels::ExpertGrad& p);

/// Scratch of a forward walk over `width` columns that a GPU makes in parts; undefined where it
/// does not.
at::Tensor walk_scratch(const at::Tensor& scores, std::int64_t width);

/// Memory of ExpertLists, and the lists in it.
struct Lists {
  at::Tensor expert;
  at::Tensor selection;
  at::Tensor offsets;
  at::Tensor workspace;
  kernels::ExpertLists p;
};
/// The selections of `index` (contiguous) sorted by expert.
Lists make_lists(const at::Tensor& index, std::int64_t experts);

}  // namespace subspace::ops
