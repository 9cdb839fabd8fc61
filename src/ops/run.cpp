#include "ops/run.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#ifdef SUBSPACE_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

namespace subspace::ops {
namespace {

#ifdef SUBSPACE_CUDA
kernels::Stream stream_of(const at::Tensor& where) {
  return c10::cuda::getCurrentCUDAStream(where.device().index()).stream();
}
#endif

}  // namespace

// The CUDA versions exist in a build with CUDA only.
#ifdef SUBSPACE_CUDA
#define SUBSPACE_ON_DEVICE(kernel, ...)                  \
  if (where.is_cuda()) {                                 \
    kernels::kernel##_cuda(p, stream_of(where));         \
  } else {                                               \
    kernels::kernel##_cpu(p __VA_OPT__(, ) __VA_ARGS__); \
  }
#else
#define SUBSPACE_ON_DEVICE(kernel, ...)                                                           \
  TORCH_CHECK_NOT_IMPLEMENTED(where.is_cpu(), "subspace: a tensor is on ", where.device(),        \
                              ", and this library was built without CUDA: ./run build cuda, and " \
                              "SUBSPACE_OPS=build/cuda/lib/libsubspace_ops.so");                  \
  kernels::kernel##_cpu(p __VA_OPT__(, ) __VA_ARGS__);
#endif

void run(const at::Tensor& where, const kernels::ProductKeyTopk& p) {
  SUBSPACE_ON_DEVICE(product_key_topk, at::get_num_threads())
}
void run(const at::Tensor& where, const kernels::ProductKeyTopkGrad& p) {
  SUBSPACE_ON_DEVICE(product_key_topk_grad, at::get_num_threads())
}
void run(const at::Tensor& where, const kernels::ColumnMoments& p) {
  SUBSPACE_ON_DEVICE(column_moments, at::get_num_threads())
}
void run(const at::Tensor& where, const kernels::BatchNormHalves& p) {
  SUBSPACE_ON_DEVICE(batch_norm_halves, at::get_num_threads())
}
void run(const at::Tensor& where, const kernels::BatchNormHalvesGrad& p) {
  SUBSPACE_ON_DEVICE(batch_norm_halves_grad, at::get_num_threads())
}
void run(const at::Tensor& where, const kernels::EthosExperts& p) {
  SUBSPACE_ON_DEVICE(ethos_experts, at::get_num_threads())
}
void run(const at::Tensor& where, const kernels::EthosExpertsGrad& p) {
  SUBSPACE_ON_DEVICE(ethos_experts_grad, at::get_num_threads())
}
void run(const at::Tensor& where, const kernels::StoredExperts& p) {
  SUBSPACE_ON_DEVICE(stored_experts, at::get_num_threads())
}
void run(const at::Tensor& where, const kernels::StoredExpertsGrad& p) {
  SUBSPACE_ON_DEVICE(stored_experts_grad, at::get_num_threads())
}
void run(const at::Tensor& where, const kernels::ExpertLists& p) {
  SUBSPACE_ON_DEVICE(expert_lists)
}
void run(const at::Tensor& where, const kernels::DistinctExperts& p) {
  SUBSPACE_ON_DEVICE(distinct_experts)
}
void run(const at::Tensor& where, const kernels::GatherRows& p) {
  SUBSPACE_ON_DEVICE(gather_rows, at::get_num_threads())
}
void run(const at::Tensor& where, const kernels::ExpertGelu& p) {
  SUBSPACE_ON_DEVICE(expert_gelu, at::get_num_threads())
}
void run(const at::Tensor& where,
         const kernels::ExpertGrad& p){SUBSPACE_ON_DEVICE(expert_grad, at::get_num_threads())}
#undef SUBSPACE_ON_DEVICE

at::Tensor walk_scratch(const at::Tensor& scores, std::int64_t width) {
  const std::int64_t parts = kernels::walk_split(scores.size(0), scores.size(1)).parts;
  if (!scores.is_cuda() || parts == 1) return {};
  return at::empty({scores.size(0) * parts * width}, scores.options().dtype(at::kFloat));
}

Lists make_lists(const at::Tensor& index, std::int64_t experts) {
  const std::int64_t count = index.numel();
  const auto ints = index.options().dtype(at::kInt);
  Lists lists;
  lists.expert = at::empty({count}, ints);
  lists.selection = at::empty({count}, ints);
  lists.offsets = at::empty({experts + 1}, ints);
  if (index.is_cuda()) {
    lists.workspace = at::empty({kernels::expert_lists_workspace(count)}, ints.dtype(at::kByte));
  }
  lists.p = {.index = index.const_data_ptr<std::int64_t>(),
             .count = count,
             .experts = experts,
             .expert = static_cast<std::uint32_t*>(lists.expert.mutable_data_ptr()),
             .selection = static_cast<std::uint32_t*>(lists.selection.mutable_data_ptr()),
             .offsets = static_cast<std::uint32_t*>(lists.offsets.mutable_data_ptr()),
             .workspace = index.is_cuda() ? lists.workspace.mutable_data_ptr() : nullptr};
  run(index, lists.p);
  return lists;
}

}  // namespace subspace::ops
