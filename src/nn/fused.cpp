#include "nn/fused.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <atomic>

#include "nn/on_device.h"

namespace subspace::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

std::atomic<Fuse> fuse_where = Fuse::on_gpu;
std::atomic<std::int64_t> logits_bytes = std::int64_t{256} << 20;

kernels::Element element_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? kernels::Element::f32 : kernels::Element::bf16;
}

const void* data_or_null(const at::Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }

/// As autograd's functions take an absent operand.
std::optional<at::Tensor> if_there(const at::Tensor& x) {
  return x.defined() ? std::optional<at::Tensor>(x) : std::nullopt;
}

at::Tensor scratch(std::int64_t floats, const at::Tensor& like) {
  return at::empty({floats}, like.options().dtype(at::kFloat));
}

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
      sum_.add_(at::mm(a.t(), b, at::kFloat));
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
at::Tensor kept(AutogradContext* context, const char* name) {
  const c10::IValue& value = context->saved_data.at(name);
  return value.isNone() ? at::Tensor() : value.toTensor();
}
void keep(AutogradContext* context, const char* name, const at::Tensor& parameter) {
  context->saved_data[name] = parameter.defined() ? c10::IValue(parameter) : c10::IValue();
}

struct LinearFunction : Function<LinearFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weight) {
    context->save_for_backward({x});
    keep(context, "weight", weight);
    return at::linear(x, weight);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const at::Tensor x = context->get_saved_variables()[0], weight = kept(context, "weight");
    const at::Tensor grad = grads[0].flatten(0, -2);
    GradientSum sum(weight);
    sum.add_product(grad, x.flatten(0, -2));
    at::Tensor grad_x;
    if (context->needs_input_grad(0)) grad_x = at::mm(grad, weight).view_as(x);
    return {grad_x, sum.for_autograd()};
  }
};

std::int64_t rows_of(const at::Tensor& x) { return x.numel() / x.size(-1); }

/// Rows of the last axis at one distance, whatever the axes before.
bool rows_are_even(const at::Tensor& x) {
  if (x.stride(-1) != 1) return false;
  for (std::int64_t i = x.dim() - 2; i > 0; --i) {
    if (x.stride(i - 1) != x.stride(i) * x.size(i)) return false;
  }
  return true;
}

variable_list norm_backward(const at::Tensor& grad, const at::Tensor& grad_sum, const at::Tensor& s,
                            const at::Tensor& weight, const at::Tensor& scale,
                            const at::Tensor& bias) {
  const at::Tensor g = grad.contiguous();
  const at::Tensor e = grad_sum.defined() ? grad_sum.contiguous() : grad_sum;
  at::Tensor out = at::empty(s.sizes(), s.options());
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
                              .grad_stride = width,
                              .element = element_of(s)});
  return {out, weights.for_autograd(), biases.for_autograd()};
}

struct NormFunction : Function<NormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            double eps) {
    at::Tensor y = at::empty(x.sizes(), x.options());
    at::Tensor scale = scratch(rows_of(x), x);
    run(x, kernels::RmsNorm{.x = x.const_data_ptr(),
                            .weight = weight.const_data_ptr(),
                            .y = y.mutable_data_ptr(),
                            .scale = scale.mutable_data_ptr<float>(),
                            .rows = rows_of(x),
                            .width = x.size(-1),
                            .x_stride = x.stride(-2),
                            .eps = eps,
                            .element = element_of(x)});
    context->save_for_backward({x, scale});
    keep(context, "weight", weight);
    return y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const variable_list found =
        norm_backward(grads[0], {}, saved[0], kept(context, "weight"), saved[1], {});
    return {found[0], found[1], {}};
  }
};

struct AddNormFunction : Function<AddNormFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const at::Tensor& delta, const std::optional<at::Tensor>& given_bias,
                               const at::Tensor& weight, double eps) {
    const at::Tensor bias = given_bias.value_or(at::Tensor());
    const at::Tensor added = delta.contiguous();
    at::Tensor s = at::empty(x.sizes(), x.options()), y = at::empty(x.sizes(), x.options());
    at::Tensor scale = scratch(rows_of(x), x);
    run(x, kernels::RmsNorm{.x = x.const_data_ptr(),
                            .delta = added.const_data_ptr(),
                            .bias = data_or_null(bias),
                            .weight = weight.const_data_ptr(),
                            .sum = s.mutable_data_ptr(),
                            .y = y.mutable_data_ptr(),
                            .scale = scale.mutable_data_ptr<float>(),
                            .rows = rows_of(x),
                            .width = x.size(-1),
                            .x_stride = x.stride(-2),
                            .eps = eps,
                            .element = element_of(x)});
    context->save_for_backward({s, scale});
    context->set_materialize_grads(false);
    keep(context, "weight", weight);
    keep(context, "bias", bias);
    return {s, y};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const variable_list found = norm_backward(grads[1], grads[0], saved[0], kept(context, "weight"),
                                              saved[1], kept(context, "bias"));
    return {found[0], found[0], found[2], found[1], {}};
  }
};

struct SwigluFunction : Function<SwigluFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& up,
                            const std::optional<at::Tensor>& given_bias) {
    const at::Tensor bias = given_bias.value_or(at::Tensor());
    std::vector<std::int64_t> sizes = up.sizes().vec();
    sizes.back() /= 2;
    at::Tensor y = at::empty(sizes, up.options());
    run(up, kernels::Swiglu{.up = up.const_data_ptr(),
                            .bias = data_or_null(bias),
                            .y = y.mutable_data_ptr(),
                            .rows = rows_of(y),
                            .width = sizes.back(),
                            .element = element_of(up)});
    context->save_for_backward({up});
    keep(context, "bias", bias);
    return y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const at::Tensor up = context->get_saved_variables()[0], bias = kept(context, "bias");
    const at::Tensor grad = grads[0].contiguous();
    at::Tensor out = at::empty(up.sizes(), up.options());
    const std::int64_t width = grad.size(-1), rows = rows_of(grad);
    GradientSum biases(bias);
    at::Tensor partial = scratch(bias.defined() ? kernels::swiglu_workspace(rows, width) : 0, up);
    run(up, kernels::SwigluGrad{.grad = grad.const_data_ptr(),
                                .up = up.const_data_ptr(),
                                .bias = data_or_null(bias),
                                .grad_up = out.mutable_data_ptr(),
                                .grad_bias = biases.add_here(),
                                .partial = partial.mutable_data_ptr<float>(),
                                .rows = rows,
                                .width = width,
                                .element = element_of(up)});
    return {out, biases.for_autograd()};
  }
};

struct LossFunction : Function<LossFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& rows,
                            const at::Tensor& weight, const at::Tensor& targets,
                            const at::Tensor& factor, std::int64_t classes) {
    const std::int64_t count = rows.size(0), padded = weight.size(0);
    const std::int64_t fitting = logits_bytes / (padded * rows.element_size()) / 256 * 256;
    const std::int64_t most = std::max<std::int64_t>(256, fitting);
    // Parts of one size, as far as possible.
    const std::int64_t parts = (count + most - 1) / most;
    const std::int64_t each = (count + parts - 1) / parts;
    at::Tensor losses = scratch(count, rows);
    at::Tensor grad_rows = at::empty(rows.sizes(), rows.options());
    GradientSum sum(weight);
    for (std::int64_t begin = 0; begin < count; begin += each) {
      const std::int64_t size = std::min(each, count - begin);
      const at::Tensor part = rows.narrow(0, begin, size);
      at::Tensor logits = at::mm(part, weight.t());
      run(rows, kernels::CrossEntropy{.logits = logits.mutable_data_ptr(),
                                      .targets = targets.const_data_ptr<std::int64_t>() + begin,
                                      .factor = factor.const_data_ptr<float>(),
                                      .loss = losses.mutable_data_ptr<float>() + begin,
                                      .rows = size,
                                      .columns = classes,
                                      .stride = padded,
                                      .element = element_of(rows)});
      at::Tensor grad_part = grad_rows.narrow(0, begin, size);
      at::mm_out(grad_part, logits, weight);
      sum.add_product(logits, part);
    }
    context->save_for_backward({grad_rows, sum.for_autograd()});
    return losses.sum() * factor;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const auto scaled = [&](const at::Tensor& x) {
      return x.defined() ? x * grads[0].to(x.scalar_type()) : x;
    };
    return {scaled(saved[0]), scaled(saved[1]), {}, {}, {}};
  }
};

}  // namespace

void fuse(Fuse where) { fuse_where = where; }

bool fused(const at::Tensor& x) {
  const Fuse where = fuse_where;
  if (where == Fuse::never || (where == Fuse::on_gpu && x.is_cpu())) return false;
  return x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
}

void set_logits_bytes(std::int64_t bytes) { logits_bytes = bytes; }

at::Tensor fused_linear(const at::Tensor& x, const at::Tensor& weight) {
  return LinearFunction::apply(x, weight);
}

bool norm_fits(const at::Tensor& x) {
  const std::int64_t width = x.size(-1), align = kernels::kRmsNormVector;
  return x.dim() >= 2 && width % align == 0 && width <= kernels::kRmsNormWidth &&
         rows_are_even(x) && x.stride(-2) % align == 0 &&
         x.storage_offset() * x.element_size() % 16 == 0;
}

at::Tensor fused_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return NormFunction::apply(x, weight, eps);
}

std::tuple<at::Tensor, at::Tensor> fused_add_norm(const at::Tensor& x, const at::Tensor& delta,
                                                  const at::Tensor& bias, const at::Tensor& weight,
                                                  double eps) {
  const variable_list out = AddNormFunction::apply(x, delta, if_there(bias), weight, eps);
  return {out[0], out[1]};
}

at::Tensor fused_swiglu(const at::Tensor& up, const at::Tensor& bias) {
  return SwigluFunction::apply(up.contiguous(), if_there(bias));
}

at::Tensor fused_loss(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& targets,
                      const at::Tensor& factor, std::int64_t classes) {
  return LossFunction::apply(rows.contiguous(), weight, targets, factor, classes);
}

}  // namespace subspace::nn
