#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "ops/arguments.h"
#include "ops/backend.h"
#include "ops/run.h"

namespace subspace::ops {
namespace {

/// x [T, C] with C = 2 heads halves, and what belongs to the norm.
void check_norm(const Arguments& arguments, const Tensor& x, std::int64_t heads,
                std::initializer_list<std::pair<const char*, const Tensor*>> columns) {
  arguments.shape("x", x, "[tokens, heads q]", {-1, -1});
  arguments.floating("x", x);
  const c10::SymInt width = x.sym_size(1);
  TORCH_CHECK_VALUE(heads >= 1 && (width % (2 * heads)).sym_eq(0).expect_true(__FILE__, __LINE__),
                    "subspace::batch_norm_halves: x has ", width, " columns and heads is ", heads,
                    "; expected heads of two halves each");
  for (const auto& [name, tensor] : columns) {
    arguments.shape(name, *tensor, "[columns of x]", {width});
    arguments.type(name, *tensor, at::kFloat);
    arguments.device(name, *tensor, "x", x);
  }
}

void check_halves(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean,
                  const Tensor& variance, std::int64_t heads) {
  check_norm(Arguments("batch_norm_halves"), x, heads,
             {{"weight", &weight}, {"bias", &bias}, {"mean", &mean}, {"variance", &variance}});
}

void check_halves_backward(const Tensor& grad_first, const Tensor& grad_second, const Tensor& x,
                           const Tensor& weight, const Tensor& mean, const Tensor& variance) {
  const Arguments arguments("batch_norm_halves_backward");
  arguments.shape("grad_first", grad_first, "[tokens, heads, half]", {-1, -1, -1});
  const auto sizes = {grad_first.sym_size(0), grad_first.sym_size(1), grad_first.sym_size(2)};
  arguments.shape("grad_second", grad_second, "[tokens, heads, half] as grad_first", sizes);
  arguments.shape("x", x, "[tokens, heads q]",
                  {grad_first.sym_size(0), grad_first.sym_size(1) * grad_first.sym_size(2) * 2});
  arguments.like("grad_first", grad_first, "x", x);
  arguments.like("grad_second", grad_second, "x", x);
  check_norm(arguments, x, 1, {{"weight", &weight}, {"mean", &mean}, {"variance", &variance}});
}

Tensors2 empty_halves(const Tensor& x, std::int64_t heads) {
  const c10::SymInt sizes[] = {x.sym_size(0), heads, x.sym_size(1) / (2 * heads)};
  return {at::empty_symint(sizes, x.options()), at::empty_symint(sizes, x.options())};
}

kernels::BatchNormHalves norm_of(const Tensor& x, const Tensor& weight, const Tensor& mean,
                                 const Tensor& variance, std::int64_t heads, double eps) {
  return {.x = x.const_data_ptr(),
          .mean = mean.const_data_ptr<float>(),
          .variance = variance.const_data_ptr<float>(),
          .weight = weight.const_data_ptr<float>(),
          .rows = x.size(0),
          .heads = heads,
          .half = x.size(1) / (2 * heads),
          .eps = eps,
          .element = element_of(x)};
}

Tensor scratch(const Tensor& x) {
  return at::empty({kernels::column_moments_workspace(x.size(0), x.size(1))},
                   x.options().dtype(at::kFloat));
}

void check_moments(const Tensor& x) {
  const Arguments arguments("column_moments");
  arguments.shape("x", x, "[rows, columns]", {-1, -1});
  arguments.floating("x", x);
}

}  // namespace

Tensors2 moments_meta(const Tensor& x) {
  check_moments(x);
  const c10::SymInt sizes[] = {x.sym_size(1)};
  const auto floats = x.options().dtype(at::kFloat);
  return {at::empty_symint(sizes, floats), at::empty_symint(sizes, floats)};
}

Tensors2 moments(const Tensor& x) {
  check_moments(x);
  const Scope scope(x);
  const Tensor rows = ready(x);
  Tensor mean = at::empty({x.size(1)}, x.options().dtype(at::kFloat));
  Tensor variance = at::empty_like(mean);
  const Tensor partial = scratch(x);
  run(x, kernels::ColumnMoments{.x = rows.const_data_ptr(),
                                .mean = mean.mutable_data_ptr<float>(),
                                .variance = variance.mutable_data_ptr<float>(),
                                .partial = partial.mutable_data_ptr<float>(),
                                .rows = x.size(0),
                                .width = x.size(1),
                                .element = element_of(x)});
  return {mean, variance};
}

Tensors2 norm_halves_meta(const Tensor& x, const Tensor& weight, const Tensor& bias,
                          const Tensor& mean, const Tensor& variance, std::int64_t heads, double,
                          bool) {
  check_halves(x, weight, bias, mean, variance, heads);
  return empty_halves(x, heads);
}

Tensors2 norm_halves(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean,
                     const Tensor& variance, std::int64_t heads, double eps, bool) {
  check_halves(x, weight, bias, mean, variance, heads);
  const Scope scope(x);
  const Tensor rows = ready(x), w = ready(weight), b = ready(bias), m = ready(mean),
               v = ready(variance);
  auto [first, second] = empty_halves(x, heads);
  kernels::BatchNormHalves p = norm_of(rows, w, m, v, heads, eps);
  p.bias = b.const_data_ptr<float>();
  p.first = first.mutable_data_ptr();
  p.second = second.mutable_data_ptr();
  run(x, p);
  return {first, second};
}

Tensors3 norm_halves_backward_meta(const Tensor& grad_first, const Tensor& grad_second,
                                   const Tensor& x, const Tensor& weight, const Tensor& mean,
                                   const Tensor& variance, double, bool) {
  check_halves_backward(grad_first, grad_second, x, weight, mean, variance);
  return {at::empty_symint(x.sym_sizes(), x.options()), at::empty_like(weight),
          at::empty_like(weight)};
}

Tensors3 norm_halves_backward(const Tensor& grad_first, const Tensor& grad_second, const Tensor& x,
                              const Tensor& weight, const Tensor& mean, const Tensor& variance,
                              double eps, bool of_batch) {
  check_halves_backward(grad_first, grad_second, x, weight, mean, variance);
  const Scope scope(x);
  const Tensor first = ready(grad_first), second = ready(grad_second);
  const Tensor rows = ready(x), w = ready(weight), m = ready(mean), v = ready(variance);
  Tensor grad_x = at::empty(x.sizes(), x.options());
  Tensor grad_weight = at::empty(weight.sizes(), weight.options());
  Tensor grad_bias = at::empty(weight.sizes(), weight.options());
  const Tensor partial = scratch(x);
  run(x, kernels::BatchNormHalvesGrad{.forward = norm_of(rows, w, m, v, first.size(1), eps),
                                      .of_batch = of_batch,
                                      .grad_first = first.const_data_ptr(),
                                      .grad_second = second.const_data_ptr(),
                                      .grad_x = grad_x.mutable_data_ptr(),
                                      .grad_weight = grad_weight.mutable_data_ptr<float>(),
                                      .grad_bias = grad_bias.mutable_data_ptr<float>(),
                                      .partial = partial.mutable_data_ptr<float>()});
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace subspace::ops
