#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include "kernels/expert_table.h"
#include "ops/arguments.h"
#include "ops/backend.h"
#include "ops/run.h"

namespace subspace::ops {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 31;

void check_ethos(const char* op, const Tensor& xp, const Tensor& scores, const Tensor& index,
                 const Tensor& z, const Tensor& w1) {
  const Arguments arguments(op);
  arguments.shape("xp", xp, "[tokens, d_h]", {-1, -1});
  arguments.shape("scores", scores, "[tokens, selections]", {xp.sym_size(0), -1});
  arguments.shape("index", index, "[tokens, selections] as scores",
                  {xp.sym_size(0), scores.sym_size(1)});
  arguments.shape("z", z, "[experts, d_l]", {-1, -1});
  arguments.shape("w1", w1, "[d_l, d_h]", {z.sym_size(1), xp.sym_size(1)});
  arguments.floating("xp", xp);
  arguments.like("z", z, "xp", xp);
  arguments.like("w1", w1, "xp", xp);
  arguments.floating("scores", scores);
  arguments.device("scores", scores, "xp", xp);
  arguments.type("index", index, at::kLong);
  arguments.device("index", index, "xp", xp);
  arguments.width("d_h (the width of xp)", xp.sym_size(1), 1024);
  arguments.below("selections (tokens times selections of each)",
                  xp.sym_size(0) * scores.sym_size(1), kLimit);
  arguments.some_experts(z.sym_size(0), scores);
  arguments.below("experts", z.sym_size(0), kLimit);
}

/// kernels::choose_generation of sizes that may be symbols.
bool generates_chosen(const Tensor& index, const Tensor& z) {
  const auto selections = index.sym_size(0) * index.sym_size(1);
  const auto known = selections.maybe_as_int(), experts = z.sym_size(0).maybe_as_int();
  if (known && experts) {
    return kernels::choose_generation(*known, *experts) == kernels::Generate::distinct;
  }
  return (selections * 4).sym_lt(z.sym_size(0)).guard_bool(__FILE__, __LINE__);
}

c10::SymInt rows_generated(const Tensor& index, const Tensor& z) {
  return generates_chosen(index, z) ? index.sym_size(0) * index.sym_size(1) : z.sym_size(0);
}

void check_ethos_backward(const Tensor& grad, const Tensor& xp, const Tensor& scores,
                          const Tensor& index, const Tensor& z, const Tensor& w1, const Tensor& p,
                          const Tensor& pre, const Tensor& table) {
  const char* op = "ethos_experts_backward";
  check_ethos(op, xp, scores, index, z, w1);
  const Arguments arguments(op);
  const c10::SymInt width = xp.sym_size(1), rows = rows_generated(index, z);
  arguments.shape("grad", grad, "[tokens, d_h] as xp", {xp.sym_size(0), width});
  arguments.shape("p", p, "[tokens, selections] as scores", {xp.sym_size(0), scores.sym_size(1)});
  arguments.shape("pre", pre, "[generated, d_h]", {rows, width});
  arguments.shape("table", table, "[generated, d_h]", {rows, width});
  arguments.like("grad", grad, "xp", xp);
  arguments.like("pre", pre, "xp", xp);
  arguments.like("table", table, "xp", xp);
  arguments.type("p", p, at::kFloat);
  arguments.device("p", p, "xp", xp);
}

/// The experts a call generates: all of them, or those chosen, renumbered. How many distinct ones
/// there are is known to the device alone, so the second kind has a row for every selection, the
/// last of which nobody refers to.
struct Generated {
  Tensor latents;   // [rows, d_l]
  Tensor index;     // [T, S] into these
  Tensor distinct;  // [rows], the experts; undefined if all
};

/// Where nothing comes back, a row for every selection: without sorting, an expert chosen twice is
/// generated twice.
Generated generated_again(const Tensor& index, const Tensor& z) {
  const Tensor rows = ready(z);
  Generated out{at::empty({index.numel(), z.size(1)}, z.options()), at::empty_like(index), {}};
  run(index, kernels::GatherRows{.rows = rows.const_data_ptr(),
                                 .index = index.const_data_ptr<std::int64_t>(),
                                 .out = out.latents.mutable_data_ptr(),
                                 .places = out.index.mutable_data_ptr<std::int64_t>(),
                                 .count = index.numel(),
                                 .count_rows = z.size(0),
                                 .width = z.size(1),
                                 .element = element_of(z)});
  return out;
}

Generated generated(const Tensor& index, const Tensor& z, bool for_backward) {
  if (!generates_chosen(index, z)) return {ready(z), index, {}};
  if (!for_backward) return generated_again(index, z);
  const Lists lists = make_lists(index, z.size(0));
  const auto options = index.options();
  Generated out{{}, at::empty_like(index), at::empty({index.numel()}, options)};
  Tensor number = at::empty({1}, options);
  run(index, kernels::DistinctExperts{.lists = lists.p,
                                      .distinct = out.distinct.mutable_data_ptr<std::int64_t>(),
                                      .remapped = out.index.mutable_data_ptr<std::int64_t>(),
                                      .number = number.mutable_data_ptr<std::int64_t>()});
  out.latents = z.index_select(0, out.distinct);
  return out;
}

}  // namespace

Tensors4 ethos_forward_meta(const Tensor& xp, const Tensor& scores, const Tensor& index,
                            const Tensor& z, const Tensor& w1, bool) {
  check_ethos("ethos_experts", xp, scores, index, z, w1);
  const c10::SymInt tokens = xp.sym_size(0), width = xp.sym_size(1);
  const c10::SymInt rows = rows_generated(index, z);
  return {at::empty_symint({tokens, width}, xp.options()),
          at::empty_symint({tokens, scores.sym_size(1)}, xp.options().dtype(at::kFloat)),
          at::empty_symint({rows, width}, xp.options()),
          at::empty_symint({rows, width}, xp.options())};
}

Tensors4 ethos_forward(const Tensor& xp, const Tensor& scores, const Tensor& index, const Tensor& z,
                       const Tensor& w1, bool for_backward) {
  check_ethos("ethos_experts", xp, scores, index, z, w1);
  const Scope scope(xp);
  const Tensor vectors = ready(xp), whole_index = ready(index);
  const Tensor weights = ready(scores.to(at::kFloat));
  Arguments("ethos_experts").experts(whole_index, z.size(0));
  const Generated experts = generated(whole_index, z, for_backward);
  Tensor pre = at::mm(experts.latents, w1);
  Tensor table = at::empty_like(pre);
  run(xp, kernels::ExpertGelu{.pre = pre.const_data_ptr(),
                              .out = table.mutable_data_ptr(),
                              .count = pre.numel(),
                              .element = element_of(xp)});
  Tensor acc = at::empty(xp.sizes(), xp.options());
  Tensor p = at::empty(scores.sizes(), xp.options().dtype(at::kFloat));
  const Tensor partial = walk_scratch(scores, xp.size(1));
  run(xp, kernels::EthosExperts{
              .xp = vectors.const_data_ptr(),
              .scores = weights.const_data_ptr<float>(),
              .index = experts.index.const_data_ptr<std::int64_t>(),
              .table = table.const_data_ptr(),
              .acc = acc.mutable_data_ptr(),
              .p = p.mutable_data_ptr<float>(),
              .partial = partial.defined() ? partial.mutable_data_ptr<float>() : nullptr,
              .tokens = xp.size(0),
              .selections = scores.size(1),
              .experts = table.size(0),
              .width = xp.size(1),
              .element = element_of(xp)});
  return {acc, p, pre, table};
}

Tensors4 ethos_backward_meta(const Tensor& grad, const Tensor& xp, const Tensor& scores,
                             const Tensor& index, const Tensor& z, const Tensor& w1,
                             const Tensor& p, const Tensor& pre, const Tensor& table) {
  check_ethos_backward(grad, xp, scores, index, z, w1, p, pre, table);
  const auto like = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  return {like(xp), like(scores), like(z), like(w1)};
}

Tensors4 ethos_backward(const Tensor& grad, const Tensor& xp, const Tensor& scores,
                        const Tensor& index, const Tensor& z, const Tensor& w1, const Tensor& p,
                        const Tensor& pre, const Tensor& table) {
  check_ethos_backward(grad, xp, scores, index, z, w1, p, pre, table);
  const Scope scope(xp);
  const Tensor g = ready(grad), vectors = ready(xp), whole_index = ready(index);
  const Tensor weights = ready(scores.to(at::kFloat)), whole_p = ready(p);
  const Tensor whole_pre = ready(pre), whole_table = ready(table);
  Arguments("ethos_experts_backward").experts(whole_index, z.size(0));
  const Generated experts = generated(whole_index, z, /*for_backward=*/true);
  const auto floats = xp.options().dtype(at::kFloat);
  Tensor grad_xp = at::empty(xp.sizes(), xp.options());
  Tensor grad_scores = at::empty(scores.sizes(), floats);
  Tensor pairs = at::empty({scores.size(0), scores.size(1), 2}, floats);
  auto* row_weights = static_cast<kernels::RowWeights*>(pairs.mutable_data_ptr());
  run(xp, kernels::EthosExpertsGrad{.grad = g.const_data_ptr(),
                                    .scores = weights.const_data_ptr<float>(),
                                    .index = experts.index.const_data_ptr<std::int64_t>(),
                                    .table = whole_table.const_data_ptr(),
                                    .p = whole_p.const_data_ptr<float>(),
                                    .grad_scores = grad_scores.mutable_data_ptr<float>(),
                                    .weights = row_weights,
                                    .grad_xp = grad_xp.mutable_data_ptr(),
                                    .tokens = xp.size(0),
                                    .selections = scores.size(1),
                                    .experts = table.size(0),
                                    .width = xp.size(1),
                                    .element = element_of(xp)});
  const Lists lists = make_lists(experts.index, table.size(0));
  Tensor partial =
      at::empty({kernels::expert_grad_workspace(index.numel(), xp.size(1), false) / 4}, floats);
  Tensor grad_pre = at::empty(pre.sizes(), pre.options());
  run(xp, kernels::ExpertGrad{.grad = g.const_data_ptr(),
                              .vectors = vectors.const_data_ptr(),
                              .weights = row_weights,
                              .lists = lists.p,
                              .output = grad_pre.mutable_data_ptr(),
                              .pre = whole_pre.const_data_ptr(),
                              .partial = partial.mutable_data_ptr<float>(),
                              .tokens = xp.size(0),
                              .selections = scores.size(1),
                              .width = xp.size(1),
                              .element = element_of(xp)});
  Tensor grad_w1 = at::mm(experts.latents.t(), grad_pre);
  Tensor grad_z = at::mm(grad_pre, w1.t());
  if (experts.distinct.defined()) {
    // The rows that nobody refers to add zeros to expert 0: its sum has one other term at most.
    grad_z = at::zeros(z.sizes(), z.options()).index_add_(0, experts.distinct, grad_z);
  }
  return {grad_xp, grad_scores.to(scores.scalar_type()), grad_z.contiguous(), grad_w1.contiguous()};
}

}  // namespace subspace::ops
