// What the fused functions that hold an RMSNorm share: the kernel's operands from tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/rms_norm.h"

namespace subspace::nn {

/// The pointer of a tensor that may be absent.
inline const void* data_or_null(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr() : nullptr;
}

/// RMSNorm over the last axis of x, which may be columns of wider rows, as the kernel takes it: y
/// and scale (what backward needs of every row) are made here.
kernels::RmsNorm norm_operands(const at::Tensor& x, const at::Tensor& weight, double eps,
                               at::Tensor& y, at::Tensor& scale);

/// y, with scale for backward.
at::Tensor norm_forward(const at::Tensor& x, const at::Tensor& weight, double eps,
                        at::Tensor& scale);

/// What autograd gets for the parameters; undefined where their own gradients were added to.
struct NormGrads {
  at::Tensor weight, bias;
};
/// The gradient of s, the sum that was normed, into `out` (s's shape, rows at any distance), from
/// that of its norm and, if defined, that of the sum itself. `bias`: that of the sum, or undefined.
NormGrads norm_backward(const at::Tensor& grad, const at::Tensor& grad_sum, const at::Tensor& s,
                        const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& bias,
                        at::Tensor out);

}  // namespace subspace::nn
