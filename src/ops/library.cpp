// Schemas, backends, autograd and autocast of torch.ops.subspace.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/matmul.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/arguments.h"
#include "ops/backend.h"
#include "ops/ops.h"

namespace subspace::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The dispatcher's entry of an operator, looked up once.
#define SUBSPACE_ENTRY(name, type)                                                           \
  []() -> const c10::TypedOperatorHandle<type>& {                                            \
    static const auto entry =                                                                \
        c10::Dispatcher::singleton().findSchemaOrThrow("subspace::" name, "").typed<type>(); \
    return entry;                                                                            \
  }()

using Tensors2Symint = Tensors2(const Tensor&, const Tensor&, const std::optional<Tensor>&,
                                c10::SymInt, at::ScalarType);

struct ProductKeyTopk : torch::autograd::Function<ProductKeyTopk> {
  static variable_list forward(AutogradContext* context, const Tensor& s1, const Tensor& s2,
                               std::int64_t k, bool softmax) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [scores, index] = product_key_topk(s1, s2, k, softmax);
    context->save_for_backward(softmax ? variable_list{index, scores} : variable_list{index});
    context->saved_data["side"] = s1.sym_size(2);
    context->saved_data["type"] = s1.scalar_type();
    context->mark_non_differentiable({index});
    context->set_materialize_grads(false);
    return {scores, index};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    if (!grads[0].defined()) return {{}, {}, {}, {}};
    const auto saved = context->get_saved_variables();
    const auto weights = saved.size() == 2 ? std::optional<Tensor>(saved[1]) : std::nullopt;
    auto [s1, s2] = SUBSPACE_ENTRY("product_key_topk_backward", Tensors2Symint)
                        .call(grads[0], saved[0], weights, context->saved_data["side"].toSymInt(),
                              context->saved_data["type"].toScalarType());
    return {s1, s2, {}, {}};
  }
};

struct BatchNormHalves : torch::autograd::Function<BatchNormHalves> {
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& weight,
                               const Tensor& bias, const Tensor& mean, const Tensor& variance,
                               std::int64_t heads, double eps, bool of_batch) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [first, second] = SUBSPACE_ENTRY("batch_norm_halves", decltype(norm_halves))
                               .call(x, weight, bias, mean, variance, heads, eps, of_batch);
    context->save_for_backward({x, weight, mean, variance});
    context->saved_data["eps"] = eps;
    context->saved_data["of_batch"] = of_batch;
    return {first, second};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto s = context->get_saved_variables();
    auto [x, weight, bias] =
        SUBSPACE_ENTRY("batch_norm_halves_backward", decltype(norm_halves_backward))
            .call(grads[0], grads[1], s[0], s[1], s[2], s[3],
                  context->saved_data.at("eps").toDouble(),
                  context->saved_data.at("of_batch").toBool());
    return {x, weight, bias, {}, {}, {}, {}, {}};
  }
};

struct EthosExperts : torch::autograd::Function<EthosExperts> {
  static variable_list forward(AutogradContext* context, const Tensor& xp, const Tensor& scores,
                               const Tensor& index, const Tensor& z, const Tensor& w1,
                               bool for_backward) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [acc, p, pre, table] = SUBSPACE_ENTRY("ethos_experts_forward", decltype(ethos_forward))
                                    .call(xp, scores, index, z, w1, for_backward);
    context->save_for_backward({xp, scores, index, z, w1, p, pre, table});
    context->saved_data["for_backward"] = for_backward;
    context->mark_non_differentiable({p, pre, table});
    context->set_materialize_grads(false);
    return {acc, p, pre, table};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    if (!grads[0].defined()) return {{}, {}, {}, {}, {}, {}};
    TORCH_CHECK_VALUE(context->saved_data.at("for_backward").toBool(),
                      "subspace::ethos_experts_forward: for_backward was false, so nothing is "
                      "kept for a gradient");
    const auto s = context->get_saved_variables();
    auto [xp, scores, z, w1] = SUBSPACE_ENTRY("ethos_experts_backward", decltype(ethos_backward))
                                   .call(grads[0], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]);
    return {xp, scores, {}, z, w1, {}};
  }
};

struct StoredExperts : torch::autograd::Function<StoredExperts> {
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& scores,
                               const Tensor& index, const Tensor& down, const Tensor& up) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [y, p] = SUBSPACE_ENTRY("stored_experts_forward", decltype(stored_forward))
                      .call(x, scores, index, down, up);
    context->save_for_backward({x, scores, index, down, up, p});
    context->mark_non_differentiable({p});
    context->set_materialize_grads(false);
    return {y, p};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    if (!grads[0].defined()) return {{}, {}, {}, {}, {}};
    const auto s = context->get_saved_variables();
    auto [x, scores, down, up] =
        SUBSPACE_ENTRY("stored_experts_backward", decltype(stored_backward))
            .call(grads[0], s[0], s[1], s[2], s[3], s[4], s[5]);
    return {x, scores, {}, down, up};
  }
};

Tensors2 topk_autograd(const Tensor& s1, const Tensor& s2, std::int64_t k, bool softmax) {
  const auto out = ProductKeyTopk::apply(s1, s2, k, softmax);
  return {out[0], out[1]};
}
Tensors2 norm_halves_autograd(const Tensor& x, const Tensor& weight, const Tensor& bias,
                              const Tensor& mean, const Tensor& variance, std::int64_t heads,
                              double eps, bool of_batch) {
  const auto out = BatchNormHalves::apply(x, weight, bias, mean, variance, heads, eps, of_batch);
  return {out[0], out[1]};
}
Tensors2 moments_autograd(const Tensor& x) {
  const at::AutoDispatchBelowADInplaceOrView below;
  return SUBSPACE_ENTRY("column_moments", decltype(moments)).call(x);
}
Tensors4 ethos_autograd(const Tensor& xp, const Tensor& scores, const Tensor& index,
                        const Tensor& z, const Tensor& w1, bool for_backward) {
  const auto out = EthosExperts::apply(xp, scores, index, z, w1, for_backward);
  return {out[0], out[1], out[2], out[3]};
}
Tensors2 stored_autograd(const Tensor& x, const Tensor& scores, const Tensor& index,
                         const Tensor& down, const Tensor& up) {
  const auto out = StoredExperts::apply(x, scores, index, down, up);
  return {out[0], out[1]};
}

// What users call: made of the operators below and of ATen's, which bring their own gradients.
Tensor ethos_experts_composite(const Tensor& xp, const Tensor& scores, const Tensor& index,
                               const Tensor& z, const Tensor& w1) {
  const bool for_backward =
      at::GradMode::is_enabled() &&
      (xp.requires_grad() || scores.requires_grad() || z.requires_grad() || w1.requires_grad());
  return std::get<0>(SUBSPACE_ENTRY("ethos_experts_forward", decltype(ethos_forward))
                         .call(xp, scores, index, z, w1, for_backward));
}
Tensor stored_experts_composite(const Tensor& x, const Tensor& scores, const Tensor& index,
                                const Tensor& down, const Tensor& up) {
  return std::get<0>(SUBSPACE_ENTRY("stored_experts_forward", decltype(stored_forward))
                         .call(x, scores, index, down, up));
}
Tensor ethos_layer_composite(const Tensor& x, const Tensor& scores, const Tensor& index,
                             const Tensor& z, const Tensor& w1, const Tensor& w_u,
                             const Tensor& w_v, std::int64_t heads) {
  TORCH_CHECK_VALUE(heads >= 1, "subspace::ethos_layer: heads is ", heads, "; expected 1 or more");
  TORCH_CHECK_VALUE(x.dim() == 2 && w_u.dim() == 2 && w_v.dim() == 2,
                    "subspace::ethos_layer: x, w_u and w_v have the shapes ", x.sym_sizes(), ", ",
                    w_u.sym_sizes(), " and ", w_v.sym_sizes(),
                    "; expected [tokens, d], [d, d_h] and [d_h, d]");
  const auto fits = [](const c10::SymInt& a, const c10::SymInt& b) {
    return a.sym_eq(b).expect_true(__FILE__, __LINE__);
  };
  TORCH_CHECK_VALUE(fits(w_u.sym_size(0), x.sym_size(1)) && fits(w_v.sym_size(0), w_u.sym_size(1)),
                    "subspace::ethos_layer: x, w_u and w_v have the shapes ", x.sym_sizes(), ", ",
                    w_u.sym_sizes(), " and ", w_v.sym_sizes(),
                    "; expected [tokens, d], [d, d_h] and [d_h, d]");
  const Arguments arguments("ethos_layer");
  for (const auto& [name, tensor] : {std::pair("w_u", &w_u), std::pair("w_v", &w_v)}) {
    arguments.device(name, *tensor, "x", x);
    // Autocast brings products to one type.
    if (!at::autocast::is_autocast_enabled(x.device().type())) {
      arguments.floating("x", x);
      arguments.like(name, *tensor, "x", x);
    }
  }
  const Tensor acc = ethos_experts(at::matmul(x, w_u), scores, index, z, w1);
  return at::matmul(acc, heads == 1 ? w_v : w_v / heads);
}

// Autocast: vectors and tables to its type, where the kernels have that; scores stay as they are.
template <at::DeviceType device>
Tensor cast(const Tensor& tensor) {
  const at::ScalarType wanted = at::autocast::get_autocast_dtype(device);
  return at::autocast::cached_cast(wanted == at::kBFloat16 ? at::kBFloat16 : at::kFloat, tensor,
                                   device);
}
/// Routing stays in its type, but for those that the kernels do not have.
Tensor routed(const Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  return type == at::kFloat || type == at::kBFloat16 ? tensor : tensor.to(at::kFloat);
}
Tensors2 topk_autocast(const Tensor& s1, const Tensor& s2, std::int64_t k, bool softmax) {
  const c10::impl::ExcludeDispatchKeyGuard once(c10::autocast_dispatch_keyset);
  return product_key_topk(routed(s1), routed(s2), k, softmax);
}
Tensors2 moments_autocast(const Tensor& x) {
  const c10::impl::ExcludeDispatchKeyGuard once(c10::autocast_dispatch_keyset);
  return column_moments(routed(x));
}
Tensors2 norm_halves_autocast(const Tensor& x, const Tensor& weight, const Tensor& bias,
                              const Tensor& mean, const Tensor& variance, std::int64_t heads,
                              double eps, bool of_batch) {
  const c10::impl::ExcludeDispatchKeyGuard once(c10::autocast_dispatch_keyset);
  return batch_norm_halves(routed(x), weight, bias, mean, variance, heads, eps, of_batch);
}
template <at::DeviceType device>
Tensor ethos_experts_autocast(const Tensor& xp, const Tensor& scores, const Tensor& index,
                              const Tensor& z, const Tensor& w1) {
  const c10::impl::ExcludeDispatchKeyGuard once(c10::autocast_dispatch_keyset);
  return ethos_experts(cast<device>(xp), scores, index, cast<device>(z), cast<device>(w1));
}
template <at::DeviceType device>
Tensor stored_experts_autocast(const Tensor& x, const Tensor& scores, const Tensor& index,
                               const Tensor& down, const Tensor& up) {
  const c10::impl::ExcludeDispatchKeyGuard once(c10::autocast_dispatch_keyset);
  return stored_experts(cast<device>(x), scores, index, cast<device>(down), cast<device>(up));
}

}  // namespace

std::tuple<Tensor, Tensor> product_key_topk(const Tensor& s1, const Tensor& s2, std::int64_t k,
                                            bool softmax) {
  return SUBSPACE_ENTRY("product_key_topk", decltype(topk)).call(s1, s2, k, softmax);
}
std::tuple<Tensor, Tensor> column_moments(const Tensor& x) {
  return SUBSPACE_ENTRY("column_moments", decltype(moments)).call(x);
}
std::tuple<Tensor, Tensor> batch_norm_halves(const Tensor& x, const Tensor& weight,
                                             const Tensor& bias, const Tensor& mean,
                                             const Tensor& variance, std::int64_t heads, double eps,
                                             bool of_batch) {
  return SUBSPACE_ENTRY("batch_norm_halves", decltype(norm_halves))
      .call(x, weight, bias, mean, variance, heads, eps, of_batch);
}
Tensor ethos_experts(const Tensor& xp, const Tensor& scores, const Tensor& index, const Tensor& z,
                     const Tensor& w1) {
  return SUBSPACE_ENTRY("ethos_experts", decltype(ethos_experts)).call(xp, scores, index, z, w1);
}
Tensor ethos_layer(const Tensor& x, const Tensor& scores, const Tensor& index, const Tensor& z,
                   const Tensor& w1, const Tensor& w_u, const Tensor& w_v, std::int64_t heads) {
  return SUBSPACE_ENTRY("ethos_layer", decltype(ethos_layer))
      .call(x, scores, index, z, w1, w_u, w_v, heads);
}
Tensor stored_experts(const Tensor& x, const Tensor& scores, const Tensor& index,
                      const Tensor& down, const Tensor& up) {
  return SUBSPACE_ENTRY("stored_experts", decltype(stored_experts))
      .call(x, scores, index, down, up);
}

TORCH_LIBRARY(subspace, library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  library.def(
      "product_key_topk(Tensor s1, Tensor s2, int k, bool softmax=False)"
      " -> (Tensor scores, Tensor index)",
      tags);
  library.def(
      "product_key_topk_backward(Tensor grad, Tensor index, Tensor? weights, SymInt side,"
      " ScalarType type) -> (Tensor s1, Tensor s2)",
      tags);
  library.def("column_moments(Tensor x) -> (Tensor mean, Tensor variance)", tags);
  library.def(
      "batch_norm_halves(Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor variance,"
      " int heads, float eps, bool of_batch) -> (Tensor first, Tensor second)",
      tags);
  library.def(
      "batch_norm_halves_backward(Tensor grad_first, Tensor grad_second, Tensor x, Tensor weight,"
      " Tensor mean, Tensor variance, float eps, bool of_batch)"
      " -> (Tensor x, Tensor weight, Tensor bias)",
      tags);
  library.def(
      "ethos_experts(Tensor xp, Tensor scores, Tensor index, Tensor z, Tensor w1) -> Tensor", tags);
  library.def(
      "ethos_experts_forward(Tensor xp, Tensor scores, Tensor index, Tensor z, Tensor w1,"
      " bool for_backward=True)"
      " -> (Tensor acc, Tensor p, Tensor pre, Tensor table)",
      tags);
  library.def(
      "ethos_experts_backward(Tensor grad, Tensor xp, Tensor scores, Tensor index, Tensor z,"
      " Tensor w1, Tensor p, Tensor pre, Tensor table)"
      " -> (Tensor xp, Tensor scores, Tensor z, Tensor w1)",
      tags);
  library.def(
      "ethos_layer(Tensor x, Tensor scores, Tensor index, Tensor z, Tensor w1, Tensor w_u,"
      " Tensor w_v, int heads) -> Tensor",
      tags);
  library.def(
      "stored_experts(Tensor x, Tensor scores, Tensor index, Tensor down, Tensor up) -> Tensor",
      tags);
  library.def(
      "stored_experts_forward(Tensor x, Tensor scores, Tensor index, Tensor down, Tensor up)"
      " -> (Tensor y, Tensor p)",
      tags);
  library.def(
      "stored_experts_backward(Tensor grad, Tensor x, Tensor scores, Tensor index, Tensor down,"
      " Tensor up, Tensor p) -> (Tensor x, Tensor scores, Tensor down, Tensor up)",
      tags);
}

void register_backend(torch::Library& library) {
  library.impl("product_key_topk", &topk);
  library.impl("product_key_topk_backward", &topk_backward);
  library.impl("column_moments", &moments);
  library.impl("batch_norm_halves", &norm_halves);
  library.impl("batch_norm_halves_backward", &norm_halves_backward);
  library.impl("ethos_experts_forward", &ethos_forward);
  library.impl("ethos_experts_backward", &ethos_backward);
  library.impl("stored_experts_forward", &stored_forward);
  library.impl("stored_experts_backward", &stored_backward);
}
TORCH_LIBRARY_IMPL(subspace, CPU, library) { register_backend(library); }
TORCH_LIBRARY_IMPL(subspace, CUDA, library) { register_backend(library); }

TORCH_LIBRARY_IMPL(subspace, Meta, library) {
  library.impl("product_key_topk", &topk_meta);
  library.impl("product_key_topk_backward", &topk_backward_meta);
  library.impl("column_moments", &moments_meta);
  library.impl("batch_norm_halves", &norm_halves_meta);
  library.impl("batch_norm_halves_backward", &norm_halves_backward_meta);
  library.impl("ethos_experts_forward", &ethos_forward_meta);
  library.impl("ethos_experts_backward", &ethos_backward_meta);
  library.impl("stored_experts_forward", &stored_forward_meta);
  library.impl("stored_experts_backward", &stored_backward_meta);
}

TORCH_LIBRARY_IMPL(subspace, CompositeImplicitAutograd, library) {
  library.impl("ethos_experts", &ethos_experts_composite);
  library.impl("ethos_layer", &ethos_layer_composite);
  library.impl("stored_experts", &stored_experts_composite);
}

TORCH_LIBRARY_IMPL(subspace, Autograd, library) {
  library.impl("product_key_topk", &topk_autograd);
  library.impl("column_moments", &moments_autograd);
  library.impl("batch_norm_halves", &norm_halves_autograd);
  library.impl("ethos_experts_forward", &ethos_autograd);
  library.impl("stored_experts_forward", &stored_autograd);
  for (const char* name : {"product_key_topk_backward", "batch_norm_halves_backward",
                           "ethos_experts_backward", "stored_experts_backward"}) {
    library.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

void register_routing_autocast(torch::Library& library) {
  library.impl("product_key_topk", &topk_autocast);
  library.impl("column_moments", &moments_autocast);
  library.impl("batch_norm_halves", &norm_halves_autocast);
}
TORCH_LIBRARY_IMPL(subspace, AutocastCPU, library) {
  register_routing_autocast(library);
  library.impl("ethos_experts", &ethos_experts_autocast<at::kCPU>);
  library.impl("stored_experts", &stored_experts_autocast<at::kCPU>);
}
TORCH_LIBRARY_IMPL(subspace, AutocastCUDA, library) {
  register_routing_autocast(library);
  library.impl("ethos_experts", &ethos_experts_autocast<at::kCUDA>);
  library.impl("stored_experts", &stored_experts_autocast<at::kCUDA>);
}

}  // namespace subspace::ops
