#include "nn/fused.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <atomic>

#include "nn/fused_norm.h"
#include "nn/gradient_sum.h"
#include "nn/on_device.h"

namespace subspace::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

std::atomic<Fuse> fuse_where = Fuse::on_gpu;
std::atomic<std::int64_t> logits_bytes = std::int64_t{1} << 30, cached_bytes = logits_bytes.load();

/// As autograd's functions take an absent operand.
std::optional<at::Tensor> if_there(const at::Tensor& x) {
  return x.defined() ? std::optional<at::Tensor>(x) : std::nullopt;
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

/// Rows of the last axis at one distance, whatever the axes before.
bool rows_are_even(const at::Tensor& x) {
  if (x.stride(-1) != 1) return false;
  for (std::int64_t i = x.dim() - 2; i > 0; --i) {
    if (x.stride(i - 1) != x.stride(i) * x.size(i)) return false;
  }
  return true;
}

struct NormFunction : Function<NormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            double eps) {
    at::Tensor scale;
    const at::Tensor y = norm_forward(x, weight, eps, scale);
    context->save_for_backward({x, scale});
    keep(context, "weight", weight);
    return y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor out = at::empty(x.sizes(), x.options());
    const NormGrads found =
        norm_backward(grads[0], {}, x, kept(context, "weight"), saved[1], {}, out);
    return {out, found.weight, {}};
  }
};

struct AddNormFunction : Function<AddNormFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const at::Tensor& delta, const std::optional<at::Tensor>& given_bias,
                               const at::Tensor& weight, double eps) {
    const at::Tensor bias = given_bias.value_or(at::Tensor());
    const at::Tensor added = delta.contiguous();
    at::Tensor s = at::empty(x.sizes(), x.options()), y, scale;
    kernels::RmsNorm p = norm_operands(x, weight, eps, y, scale);
    p.delta = added.const_data_ptr();
    p.bias = data_or_null(bias);
    p.sum = s.mutable_data_ptr();
    run(x, p);
    context->save_for_backward({s, scale});
    context->set_materialize_grads(false);
    keep(context, "weight", weight);
    keep(context, "bias", bias);
    return {s, y};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& s = saved[0];
    const at::Tensor out = at::empty(s.sizes(), s.options());
    const NormGrads found = norm_backward(grads[1], grads[0], s, kept(context, "weight"), saved[1],
                                          kept(context, "bias"), out);
    return {out, out, found.bias, found.weight, {}};
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

/// Rows a part: as many as fit, in parts of one size as far as possible.
std::int64_t even_part(std::int64_t count, std::int64_t fitting) {
  const std::int64_t most = std::max<std::int64_t>(256, fitting / 256 * 256);
  const std::int64_t parts = std::max<std::int64_t>(1, (count + most - 1) / most);
  return std::max<std::int64_t>(1, (count + parts - 1) / parts);
}

struct LossFunction : Function<LossFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& rows,
                            const at::Tensor& weight, const at::Tensor& targets,
                            const at::Tensor& factor, std::int64_t classes) {
    const std::int64_t count = rows.size(0), padded = weight.size(0);
    const std::int64_t each = even_part(count, logits_bytes / (padded * rows.element_size()));
    at::Tensor losses = scratch(count, rows);
    at::Tensor grad_rows = at::empty(rows.sizes(), rows.options());
    at::Tensor logits = at::empty({std::min(each, count), padded}, rows.options());
    GradientSum sum(weight);
    for (std::int64_t begin = 0; begin < count; begin += each) {
      const std::int64_t size = std::min(each, count - begin);
      // Logits and their loss in steps that the cache holds, then products with all of the part.
      const std::int64_t step = even_part(size, cached_bytes / (padded * rows.element_size()));
      for (std::int64_t at = 0; at < size; at += step) {
        const std::int64_t now = std::min(step, size - at);
        at::Tensor some = logits.narrow(0, at, now);
        at::mm_out(some, rows.narrow(0, begin + at, now), weight.t());
        run(rows,
            kernels::CrossEntropy{.logits = some.mutable_data_ptr(),
                                  .targets = targets.const_data_ptr<std::int64_t>() + begin + at,
                                  .factor = factor.const_data_ptr<float>(),
                                  .loss = losses.mutable_data_ptr<float>() + begin + at,
                                  .rows = now,
                                  .columns = classes,
                                  .stride = padded,
                                  .element = element_of(rows)});
      }
      const at::Tensor gradient = logits.narrow(0, 0, size);
      at::Tensor grad_part = grad_rows.narrow(0, begin, size);
      at::mm_out(grad_part, gradient, weight);
      sum.add_product(gradient, rows.narrow(0, begin, size));
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

void set_logits_bytes(std::int64_t at_a_time, std::int64_t in_cache) {
  logits_bytes = at_a_time;
  cached_bytes = in_cache;
}

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
