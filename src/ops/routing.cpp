#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "ops/arguments.h"
#include "ops/backend.h"
#include "ops/run.h"

namespace subspace::ops {
namespace {

void check_topk(const Tensor& s1, const Tensor& s2, std::int64_t k) {
  const Arguments arguments("product_key_topk");
  arguments.shape("s1", s1, "[tokens, heads, n]", {-1, -1, -1});
  arguments.shape("s2", s2, "[tokens, heads, n] as s1",
                  {s1.sym_size(0), s1.sym_size(1), s1.sym_size(2)});
  arguments.floating("s1", s1);
  arguments.like("s2", s2, "s1", s1);
  TORCH_CHECK_VALUE(k >= 1 && k <= kernels::kMostWinners, "subspace::product_key_topk: k is ", k,
                    "; expected 1 to ", kernels::kMostWinners);
  TORCH_CHECK_VALUE(s1.sym_size(2).sym_ge(k).expect_true(__FILE__, __LINE__) &&
                        s1.sym_size(2).sym_le(32768).expect_true(__FILE__, __LINE__),
                    "subspace::product_key_topk: a side has n = ", s1.sym_size(2),
                    " keys; expected k = ", k, " to 32768");
  arguments.below("rows (tokens times heads)", s1.sym_size(0) * s1.sym_size(1),
                  std::int64_t{1} << 31);
}

void check_topk_backward(const Tensor& grad, const Tensor& index,
                         const std::optional<Tensor>& weights, const c10::SymInt& side,
                         at::ScalarType type) {
  const Arguments arguments("product_key_topk_backward");
  arguments.shape("index", index, "[tokens, heads, k]", {-1, -1, -1});
  const auto sizes = {index.sym_size(0), index.sym_size(1), index.sym_size(2)};
  arguments.shape("grad", grad, "[tokens, heads, k] as index", sizes);
  arguments.type("index", index, at::kLong);
  arguments.type("grad", grad, at::kFloat);
  arguments.device("index", index, "grad", grad);
  if (weights.has_value()) {
    arguments.shape("weights", *weights, "[tokens, heads, k] as index", sizes);
    arguments.like("weights", *weights, "grad", grad);
  }
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16,
                   "subspace::product_key_topk_backward: the type is ", type,
                   "; expected Float or BFloat16");
  TORCH_CHECK_VALUE(side.sym_ge(1).expect_true(__FILE__, __LINE__) &&
                        side.sym_le(32768).expect_true(__FILE__, __LINE__),
                    "subspace::product_key_topk_backward: side is ", side, "; expected 1 to 32768");
}

}  // namespace

Tensors2 topk_meta(const Tensor& s1, const Tensor& s2, std::int64_t k, bool) {
  check_topk(s1, s2, k);
  const c10::SymInt sizes[] = {s1.sym_size(0), s1.sym_size(1), k};
  return {at::empty_symint(sizes, s1.options().dtype(at::kFloat)),
          at::empty_symint(sizes, s1.options().dtype(at::kLong))};
}

Tensors2 topk(const Tensor& s1, const Tensor& s2, std::int64_t k, bool softmax) {
  check_topk(s1, s2, k);
  const Scope scope(s1);
  const Tensor first = ready(s1);
  const Tensor second = ready(s2);
  const auto sizes = {s1.size(0), s1.size(1), k};
  Tensor scores = at::empty(sizes, s1.options().dtype(at::kFloat));
  Tensor index = at::empty(sizes, s1.options().dtype(at::kLong));
  Tensor weights = softmax ? at::empty_like(scores) : Tensor{};
  run(s1, kernels::ProductKeyTopk{.s1 = first.const_data_ptr(),
                                  .s2 = second.const_data_ptr(),
                                  .scores = scores.mutable_data_ptr<float>(),
                                  .index = index.mutable_data_ptr<std::int64_t>(),
                                  .weights = softmax ? weights.mutable_data_ptr<float>() : nullptr,
                                  .rows = s1.size(0) * s1.size(1),
                                  .side = s1.size(2),
                                  .k = k,
                                  .element = element_of(s1)});
  return {softmax ? weights : scores, index};
}

Tensors2 topk_backward_meta(const Tensor& grad, const Tensor& index,
                            const std::optional<Tensor>& weights, c10::SymInt side,
                            at::ScalarType type) {
  check_topk_backward(grad, index, weights, side, type);
  const c10::SymInt sizes[] = {grad.sym_size(0), grad.sym_size(1), side};
  return {at::empty_symint(sizes, grad.options().dtype(type)),
          at::empty_symint(sizes, grad.options().dtype(type))};
}

Tensors2 topk_backward(const Tensor& grad, const Tensor& index,
                       const std::optional<Tensor>& weights, std::int64_t side,
                       at::ScalarType type) {
  check_topk_backward(grad, index, weights, side, type);
  const Arguments arguments("product_key_topk_backward");
  const Scope scope(grad);
  const Tensor whole_grad = ready(grad);
  const Tensor whole_index = ready(index);
  const Tensor whole_weights = weights.has_value() ? ready(*weights) : Tensor{};
  if (index.numel() > 0) arguments.experts(whole_index, side * side);
  const auto sizes = {grad.size(0), grad.size(1), side};
  Tensor grad_s1 = at::empty(sizes, grad.options().dtype(type));
  Tensor grad_s2 = at::empty_like(grad_s1);
  run(grad, kernels::ProductKeyTopkGrad{
                .grad = whole_grad.const_data_ptr<float>(),
                .index = whole_index.const_data_ptr<std::int64_t>(),
                .weights = weights.has_value() ? whole_weights.const_data_ptr<float>() : nullptr,
                .grad_s1 = grad_s1.mutable_data_ptr(),
                .grad_s2 = grad_s2.mutable_data_ptr(),
                .rows = grad.size(0) * grad.size(1),
                .side = side,
                .k = grad.size(2),
                .element = element_of(grad_s1)});
  return {grad_s1, grad_s2};
}

}  // namespace subspace::ops
