#include <ATen/ops/empty.h>

#include "ops/arguments.h"
#include "ops/backend.h"
#include "ops/run.h"

namespace subspace::ops {
namespace {

constexpr std::int64_t kStoredLimit = std::int64_t{1} << 31;
constexpr std::int64_t kMostSelections = 4096;

void check_stored(const char* op, const Tensor& x, const Tensor& scores, const Tensor& index,
                  const Tensor& down, const Tensor& up) {
  const Arguments arguments(op);
  arguments.shape("x", x, "[tokens, d]", {-1, -1});
  arguments.shape("scores", scores, "[tokens, selections]", {x.sym_size(0), -1});
  arguments.shape("index", index, "[tokens, selections] as scores",
                  {x.sym_size(0), scores.sym_size(1)});
  arguments.shape("down", down, "[experts, d]", {-1, x.sym_size(1)});
  arguments.shape("up", up, "[experts, d] as down", {down.sym_size(0), x.sym_size(1)});
  arguments.floating("x", x);
  arguments.like("down", down, "x", x);
  arguments.like("up", up, "x", x);
  arguments.floating("scores", scores);
  arguments.device("scores", scores, "x", x);
  arguments.type("index", index, at::kLong);
  arguments.device("index", index, "x", x);
  arguments.width("d (the width of x)", x.sym_size(1), 4096);
  arguments.below("selections of a token", scores.sym_size(1), kMostSelections + 1);
  arguments.below("selections (tokens times selections of each)",
                  x.sym_size(0) * scores.sym_size(1), kStoredLimit);
  arguments.some_experts(down.sym_size(0), scores);
  arguments.below("experts", down.sym_size(0), kStoredLimit);
}

void check_stored_backward(const Tensor& grad, const Tensor& x, const Tensor& scores,
                           const Tensor& index, const Tensor& down, const Tensor& up,
                           const Tensor& p) {
  const char* op = "stored_experts_backward";
  check_stored(op, x, scores, index, down, up);
  const Arguments arguments(op);
  arguments.shape("grad", grad, "[tokens, d] as x", {x.sym_size(0), x.sym_size(1)});
  arguments.shape("p", p, "[tokens, selections] as scores", {x.sym_size(0), scores.sym_size(1)});
  arguments.like("grad", grad, "x", x);
  arguments.type("p", p, at::kFloat);
  arguments.device("p", p, "x", x);
}

}  // namespace

Tensors2 stored_forward_meta(const Tensor& x, const Tensor& scores, const Tensor& index,
                             const Tensor& down, const Tensor& up) {
  check_stored("stored_experts", x, scores, index, down, up);
  return {at::empty_symint(x.sym_sizes(), x.options()),
          at::empty_symint(scores.sym_sizes(), x.options().dtype(at::kFloat))};
}

Tensors2 stored_forward(const Tensor& x, const Tensor& scores, const Tensor& index,
                        const Tensor& down, const Tensor& up) {
  check_stored("stored_experts", x, scores, index, down, up);
  const Scope scope(x);
  const Tensor vectors = ready(x), whole_index = ready(index), first = ready(down),
               second = ready(up);
  const Tensor weights = ready(scores.to(at::kFloat));
  Arguments("stored_experts").experts(whole_index, down.size(0));
  Tensor y = at::empty(x.sizes(), x.options());
  Tensor p = at::empty(scores.sizes(), x.options().dtype(at::kFloat));
  const Tensor partial = walk_scratch(scores, x.size(1));
  if (x.size(0) > 0) {
    run(x, kernels::StoredExperts{
               .x = vectors.const_data_ptr(),
               .scores = weights.const_data_ptr<float>(),
               .index = whole_index.const_data_ptr<std::int64_t>(),
               .down = first.const_data_ptr(),
               .up = second.const_data_ptr(),
               .y = y.mutable_data_ptr(),
               .p = p.mutable_data_ptr<float>(),
               .partial = partial.defined() ? partial.mutable_data_ptr<float>() : nullptr,
               .tokens = x.size(0),
               .selections = scores.size(1),
               .experts = down.size(0),
               .width = x.size(1),
               .element = element_of(x)});
  }
  return {y, p};
}

Tensors4 stored_backward_meta(const Tensor& grad, const Tensor& x, const Tensor& scores,
                              const Tensor& index, const Tensor& down, const Tensor& up,
                              const Tensor& p) {
  check_stored_backward(grad, x, scores, index, down, up, p);
  const auto like = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  return {like(x), like(scores), like(down), like(up)};
}

Tensors4 stored_backward(const Tensor& grad, const Tensor& x, const Tensor& scores,
                         const Tensor& index, const Tensor& down, const Tensor& up,
                         const Tensor& p) {
  check_stored_backward(grad, x, scores, index, down, up, p);
  const Scope scope(x);
  const Tensor g = ready(grad), vectors = ready(x), whole_index = ready(index), first = ready(down),
               second = ready(up), whole_p = ready(p);
  const Tensor weights = ready(scores.to(at::kFloat));
  Arguments("stored_experts_backward").experts(whole_index, down.size(0));
  const auto floats = x.options().dtype(at::kFloat);
  Tensor grad_x = at::empty(x.sizes(), x.options());
  Tensor grad_scores = at::empty(scores.sizes(), floats);
  Tensor pairs = at::empty({scores.size(0), scores.size(1), 2}, floats);
  auto* row_weights = static_cast<kernels::RowWeights*>(pairs.mutable_data_ptr());
  if (x.size(0) > 0) {
    run(x, kernels::StoredExpertsGrad{.grad = g.const_data_ptr(),
                                      .scores = weights.const_data_ptr<float>(),
                                      .index = whole_index.const_data_ptr<std::int64_t>(),
                                      .down = first.const_data_ptr(),
                                      .up = second.const_data_ptr(),
                                      .p = whole_p.const_data_ptr<float>(),
                                      .grad_scores = grad_scores.mutable_data_ptr<float>(),
                                      .weights = row_weights,
                                      .grad_x = grad_x.mutable_data_ptr(),
                                      .tokens = x.size(0),
                                      .selections = scores.size(1),
                                      .experts = down.size(0),
                                      .width = x.size(1),
                                      .element = element_of(x)});
  }
  const Lists lists = make_lists(whole_index, down.size(0));
  Tensor partial =
      at::empty({kernels::expert_grad_workspace(index.numel(), x.size(1), true) / 4}, floats);
  Tensor grad_up = at::empty(up.sizes(), up.options());
  Tensor grad_down = at::empty(down.sizes(), down.options());
  run(x, kernels::ExpertGrad{.grad = g.const_data_ptr(),
                             .vectors = vectors.const_data_ptr(),
                             .weights = row_weights,
                             .lists = lists.p,
                             .output = grad_up.mutable_data_ptr(),
                             .input = grad_down.mutable_data_ptr(),
                             .partial = partial.mutable_data_ptr<float>(),
                             .tokens = x.size(0),
                             .selections = scores.size(1),
                             .width = x.size(1),
                             .element = element_of(x)});
  return {grad_x, grad_scores.to(scores.scalar_type()), grad_down, grad_up};
}

}  // namespace subspace::ops
