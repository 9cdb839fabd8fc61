#include "nn/fused_norm.h"

#include <ATen/ATen.h>

#include "nn/gradient_sum.h"
#include "nn/on_device.h"

namespace subspace::nn {

kernels::RmsNorm norm_operands(const at::Tensor& x, const at::Tensor& weight, double eps,
                               at::Tensor& y, at::Tensor& scale) {
  y = at::empty(x.sizes(), x.options());
  scale = scratch(rows_of(x), x);
  return {.x = x.const_data_ptr(),
          .weight = weight.const_data_ptr(),
          .y = y.mutable_data_ptr(),
          .scale = scale.mutable_data_ptr<float>(),
          .rows = rows_of(x),
          .width = x.size(-1),
          .x_stride = x.stride(-2),
          .eps = eps,
          .element = element_of(x)};
}

at::Tensor norm_forward(const at::Tensor& x, const at::Tensor& weight, double eps,
                        at::Tensor& scale) {
  at::Tensor y;
  run(x, norm_operands(x, weight, eps, y, scale));
  return y;
}

NormGrads norm_backward(const at::Tensor& grad, const at::Tensor& grad_sum, const at::Tensor& s,
                        const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& bias,
                        at::Tensor out) {
  const at::Tensor g = grad.contiguous();
  const at::Tensor e = grad_sum.defined() ? grad_sum.contiguous() : grad_sum;
  const std::int64_t width = s.size(-1), rows = rows_of(s);
  at::Tensor partial = scratch(kernels::rms_norm_workspace(rows, width), s);
  GradientSum weights(weight), biases(bias);
  run(s, kernels::RmsNormGrad{.grad = g.const_data_ptr(),
                              .grad_sum = data_or_null(e),
                              .s = s.const_data_ptr(),
                              .weight = weight.const_data_ptr(),
                              .scale = scale.const_data_ptr<float>(),
                              .grad_s = out.mutable_data_ptr(),
                              .grad_weight = weights.add_here(),
                              .grad_bias = biases.add_here(),
                              .partial = partial.mutable_data_ptr<float>(),
                              .rows = rows,
                              .width = width,
                              .s_stride = s.stride(-2),
                              .grad_stride = out.stride(-2),
                              .element = element_of(s)});
  return {weights.for_autograd(), biases.for_autograd()};
}

}  // namespace subspace::nn
