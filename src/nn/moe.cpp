#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "base/error.h"

#include "nn/feed_forward.h"
#include "nn/on_device.h"

namespace subspace::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// N tokens, d width, E experts, k active, m an expert's width.

/// Choices sorted by expert: the token of each place, and the place of each choice.
struct Order {
  at::Tensor tokens, places;  // [N k]
  std::int64_t active;
};

at::Tensor rows_of_choices(const at::Tensor& x, const Order& o) {
  return x.index_select(0, o.tokens);
}
at::Tensor sums_of_choices(const at::Tensor& rows, const Order& o) {
  return rows.index_select(0, o.places).view({-1, o.active, rows.size(1)}).sum(1);
}

// Each is the other's backward, so that neither direction adds by atomics.
void save(AutogradContext* context, const Order& o) {
  context->save_for_backward({o.tokens, o.places});
  context->saved_data["active"] = o.active;
}
Order saved(AutogradContext* context) {
  const variable_list kept = context->get_saved_variables();
  return {kept[0], kept[1], context->saved_data["active"].toInt()};
}

struct RowsOfChoices : Function<RowsOfChoices> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const Order& o) {
    save(context, o);
    return rows_of_choices(x, o);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    return {sums_of_choices(grads[0].contiguous(), saved(context)), {}};
  }
};

struct SumsOfChoices : Function<SumsOfChoices> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& rows, const Order& o) {
    save(context, o);
    return sums_of_choices(rows, o);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    return {rows_of_choices(grads[0].contiguous(), saved(context)), {}};
  }
};

}  // namespace

MixtureOfExperts::MixtureOfExperts(Parameters& parameters, const MoeConfig& config,
                                   std::int64_t width, const std::string& base)
    : config_(config), width_(width) {
  router_ = parameters.weight(base + "gate.weight", {config.experts, width});
  bias_ = parameters.buffer(base + "gate.e_score_correction_bias", {config.experts});
  std::vector<Parameters::Named> up, down;
  for (std::int64_t e = 0; e < config.experts; ++e) {
    const std::string expert = fmt::format("{}experts.{}.", base, e);
    up.push_back({expert + "gate_proj.weight", {config.width, width}});
    up.push_back({expert + "up_proj.weight", {config.width, width}});
    down.push_back({expert + "down_proj.weight", {width, config.width}});
  }
  up_ = parameters.weights(up);
  down_ = parameters.weights(down);
  load_ = at::zeros_like(bias_);
  usage_ = ExpertUsage(1, config.experts, bias_);
  if (config.shared > 0) {
    const std::string shared = base + "shared_experts.";
    shared_.emplace(
        parameters, FeedForwardConfig{config.shared * config.width, true, false}, width,
        FeedForward::Names{shared + "gate_proj", shared + "up_proj", shared + "down_proj"});
  }
}

/// scores [N, E] with those outside the best groups at minus infinity.
at::Tensor MixtureOfExperts::without_weak_groups(const at::Tensor& scores) const {
  if (config_.active_groups == config_.groups) return scores;
  const at::Tensor grouped = scores.unflatten(1, {config_.groups, -1});
  const at::Tensor of_group = std::get<0>(grouped.topk(2, -1)).sum(-1);
  const at::Tensor best = std::get<1>(of_group.topk(config_.active_groups, -1));
  const at::Tensor kept = at::zeros_like(of_group, at::kBool).scatter(1, best, true);
  return grouped.masked_fill(kept.logical_not().unsqueeze(-1), -INFINITY).flatten(1);
}

MixtureOfExperts::Route MixtureOfExperts::route(const at::Tensor& x, PassContext& pass) const {
  // Scores in float32 at least: two experts that bfloat16 cannot tell apart would be a coin toss.
  const at::ScalarType kept = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor logits = at::linear(x.to(kept), router_.to(kept));
  const at::Tensor scores = config_.softmax ? logits.softmax(-1) : logits.sigmoid();
  const at::Tensor ranked = without_weak_groups((scores + bias_.to(kept)).detach());
  Route route;
  route.chosen = std::get<1>(ranked.topk(config_.active, -1, true, /*sorted=*/false));
  route.weights = scores.gather(1, route.chosen);
  if (config_.normalize) {
    route.weights = route.weights / (route.weights.sum(-1, true) + 1e-20);
  }
  route.weights = route.weights * config_.scaling;
  if (!pass.training) return route;

  const at::Tensor choices = at::zeros({config_.experts}, scores.options())
                                 .scatter_add(0, route.chosen.flatten(),
                                              at::ones({route.chosen.numel()}, scores.options()));
  load_.add_(choices.to(load_.scalar_type()));
  usage_.count(route.chosen.unsqueeze(1));
  if (config_.auxiliary > 0) {
    const at::Tensor share = choices / static_cast<double>(route.chosen.numel());
    const at::Tensor mean = (scores / scores.sum(-1, true)).mean(0);
    const at::Tensor loss =
        (share * mean).sum() * (config_.auxiliary * static_cast<double>(config_.experts));
    pass.auxiliary = pass.auxiliary.defined() ? pass.auxiliary + loss : loss;
  }
  return route;
}

at::Tensor MixtureOfExperts::all_experts(const at::Tensor& x, const at::Tensor& chosen,
                                         const at::Tensor& weights) const {
  const std::int64_t experts = config_.experts, m = config_.width;
  const at::Tensor of_all = at::zeros({x.size(0), experts}, weights.options())
                                .scatter(1, chosen, weights)
                                .to(x.scalar_type());
  const at::Tensor up = at::linear(x, up_).view({-1, experts, 2, m});
  const at::Tensor inner = at::silu(up.select(2, 0)) * up.select(2, 1) * of_all.unsqueeze(-1);
  // The experts' second matrices side by side: their weighted sum is one product.
  const at::Tensor down =
      down_.view({experts, width_, m}).transpose(0, 1).reshape({width_, experts * m});
  return at::linear(inner.flatten(1), down);
}

at::Tensor MixtureOfExperts::chosen_experts(const at::Tensor& x, const at::Tensor& chosen,
                                            const at::Tensor& weights) const {
  const std::int64_t m = config_.width;
  const at::Tensor flat = chosen.flatten();
  const at::Tensor order = flat.argsort(/*stable=*/true, 0, false);
  const at::Tensor tokens = order.floor_divide(config_.active);
  const at::Tensor sorted_weights = weights.flatten().index_select(0, order).to(x.scalar_type());
  const at::Tensor counts = flat.bincount({}, config_.experts).to(at::kCPU);
  const auto* count = counts.data_ptr<std::int64_t>();
  std::vector<at::Tensor> written;
  for (std::int64_t e = 0, at = 0; e < config_.experts; at += count[e++]) {
    if (count[e] == 0) continue;
    const at::Tensor rows = x.index_select(0, tokens.narrow(0, at, count[e]));
    const at::Tensor up = at::linear(rows, up_.narrow(0, e * 2 * m, 2 * m));
    const at::Tensor inner = at::silu(up.narrow(1, 0, m)) * up.narrow(1, m, m);
    written.push_back(at::linear(inner * sorted_weights.narrow(0, at, count[e]).unsqueeze(1),
                                 down_.narrow(0, e * width_, width_)));
  }
  return at::zeros_like(x).index_add(0, tokens, at::cat(written, 0));
}

at::Tensor MixtureOfExperts::grouped_experts(const at::Tensor& x, const at::Tensor& chosen,
                                             const at::Tensor& weights) const {
  const std::int64_t experts = config_.experts, m = config_.width;
  const at::Tensor flat = chosen.flatten();
  const at::Tensor order = flat.argsort(/*stable=*/true, 0, false);
  const at::Tensor count = at::arange(flat.numel(), flat.options());
  const Order o{order.floor_divide(config_.active), at::empty_like(order).scatter_(0, order, count),
                config_.active};
  const at::Tensor ends = at::searchsorted(flat.index_select(0, order),
                                           at::arange(experts, flat.options()), /*out_int32=*/true,
                                           /*right=*/true);
  const at::Tensor up = at::_grouped_mm(RowsOfChoices::apply(x, o),
                                        up_.view({experts, 2 * m, width_}).transpose(1, 2), ends);
  const at::Tensor weight = weights.flatten().gather(0, order).to(x.scalar_type());
  const at::Tensor inner = at::silu(up.narrow(1, 0, m)) * up.narrow(1, m, m) * weight.unsqueeze(1);
  const at::Tensor written =
      at::_grouped_mm(inner, down_.view({experts, width_, m}).transpose(1, 2), ends);
  return SumsOfChoices::apply(written, o);
}

at::Tensor MixtureOfExperts::computed(const at::Tensor& x, const Route& route) const {
  const bool few = config_.experts <= 2 * config_.active;
  if (few) return all_experts(x, route.chosen, route.weights);
  if (x.is_cpu()) return chosen_experts(x, route.chosen, route.weights);
  // Rows of the grouped product start at multiples of 16 bytes.
  const bool even = config_.width % 8 == 0 && width_ % 8 == 0;
  return even && has_grouped_products(x) ? grouped_experts(x, route.chosen, route.weights)
                                         : all_experts(x, route.chosen, route.weights);
}

at::Tensor MixtureOfExperts::operator()(const at::Tensor& x, PassContext& pass) const {
  const at::Tensor rows = x.flatten(0, -2);
  const Route chosen = route(rows, pass);
  if (pass.choices != nullptr) {
    pass.choices->push_back({rows, {chosen.weights.unsqueeze(1), chosen.chosen.unsqueeze(1)}});
  }
  const at::Tensor y = computed(rows, chosen).view_as(x);
  return shared_ ? y + (*shared_)(x) : y;
}

void MixtureOfExperts::after_step() {
  if (config_.bias_speed > 0) bias_.add_((load_.mean() - load_).sign(), config_.bias_speed);
  load_.zero_();
}

}  // namespace subspace::nn
