// What the fused functions share: parameters and their gradients.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels/element.h"

namespace subspace::nn {

inline kernels::Element element_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? kernels::Element::f32 : kernels::Element::bf16;
}

inline at::Tensor scratch(std::int64_t floats, const at::Tensor& like) {
  return at::empty({floats}, like.options().dtype(at::kFloat));
}

/// As many rows as there are vectors on the last axis.
inline std::int64_t rows_of(const at::Tensor& x) { return x.numel() / x.size(-1); }

/// Where the gradient of a parameter is summed: in its own float32 gradient, or in a tensor that
/// goes to autograd.
class GradientSum {
 public:
  explicit GradientSum(const at::Tensor& parameter) : parameter_(parameter) {
    if (!parameter.defined()) return;
    const at::Tensor& own = parameter.grad();
    own_ = own.defined() && own.scalar_type() == at::kFloat;
    if (own_) sum_ = own;
  }
  /// Vectors: kernels add here.
  float* add_here() {
    if (!parameter_.defined()) return nullptr;
    if (!sum_.defined()) sum_ = at::zeros_like(parameter_, parameter_.options().dtype(at::kFloat));
    return sum_.mutable_data_ptr<float>();
  }
  /// += a^T b.
  void add_product(const at::Tensor& a, const at::Tensor& b) {
    if (!own_ && !sum_.defined()) {
      sum_ = at::mm(a.t(), b);
    } else if (a.is_cpu() || a.scalar_type() == at::kFloat) {
      sum_.add_(at::mm(a.t(), b));
    } else {
      at::addmm_out(sum_, sum_, a.t(), b, at::kFloat);
    }
  }
  /// What backward() returns for the parameter.
  at::Tensor for_autograd() const {
    if (own_ || !sum_.defined()) return {};
    return sum_.to(parameter_.scalar_type());
  }

 private:
  at::Tensor parameter_, sum_;
  bool own_ = false;
};

/// A parameter kept for backward as itself, so that its gradient is at hand.
inline at::Tensor kept(torch::autograd::AutogradContext* context, const char* name) {
  const c10::IValue& value = context->saved_data.at(name);
  return value.isNone() ? at::Tensor() : value.toTensor();
}
inline void keep(torch::autograd::AutogradContext* context, const char* name,
                 const at::Tensor& parameter) {
  context->saved_data[name] = parameter.defined() ? c10::IValue(parameter) : c10::IValue();
}

}  // namespace subspace::nn
