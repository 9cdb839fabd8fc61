#include "experts/observe.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "base/interrupt.h"
#include "base/progress.h"

namespace subspace::experts {
namespace {

constexpr std::int64_t kRowsKept = 256;

/// Layers that have experts, and how many.
std::vector<Observed> layers_of(const nn::Model& model) {
  std::vector<Observed> out;
  for (const auto& [layer, usage] : model.expert_usage()) {
    Observed one;
    one.layer = layer;
    one.experts = usage->counts().size(1);
    one.counts = at::zeros(usage->counts().sizes(), at::kLong);
    out.push_back(one);
  }
  return out;
}

/// Places of a pass that hold a token, [P] on the CPU; undefined: all of them.
at::Tensor places_of_tokens(const train::Batch& batch) {
  if (!batch.input.segments.defined()) return {};
  return (batch.input.segments.flatten() >= 0).nonzero().squeeze(1);
}

at::Tensor chosen(const at::Tensor& x, const at::Tensor& places) {
  return places.defined() ? x.index_select(0, places.to(x.device())) : x;
}

void add(Observed& to, std::vector<at::Tensor>& parts, const nn::ExpertChoices& choices,
         const at::Tensor& places) {
  const at::Tensor index = chosen(choices.chosen.index, places).to(at::kCPU);
  for (std::int64_t head = 0; head < index.size(1); ++head) {
    to.counts[head].add_(index.select(1, head).flatten().bincount({}, to.experts));
  }
  parts.push_back(index.to(at::kInt));
  const at::Tensor x = chosen(choices.x, places);
  const std::int64_t have = to.x.defined() ? to.x.size(0) : 0;
  const at::Tensor more = x.narrow(0, 0, std::min(kRowsKept - have, x.size(0)));
  to.x = have > 0 ? at::cat({to.x, more}) : more.clone();
}

}  // namespace

Observation observe(const nn::Model& model, const train::Batches& batches, std::int64_t tokens) {
  const at::NoGradGuard no_gradient;
  const at::Tensor& weight = model.parameters().all().front().value;
  Observation out;
  out.layers = layers_of(model);
  out.held_out = batches.held_out(0).has_value();
  std::vector<std::vector<at::Tensor>> index(out.layers.size());
  std::vector<at::Tensor> ids;
  std::int64_t seen = 0;
  Progress progress("tokens", tokens);
  for (std::int64_t n = 0; seen < tokens; ++n) {
    const auto made = out.held_out ? batches.held_out(n) : std::optional(batches.training(n, 0));
    if (!made) break;
    check_interrupted("nothing was written");
    const at::Tensor places = places_of_tokens(*made);
    const train::Batch batch = made->to(weight.device(), weight.scalar_type());
    const auto choices = model.expert_choices(batch.input);
    for (std::size_t i = 0; i < choices.size(); ++i)
      add(out.layers[i], index[i], choices[i], places);
    if (made->input.tokens.defined()) {
      ids.push_back(chosen(made->input.tokens.flatten(), places).to(at::kLong));
      out.rows += made->input.tokens.size(0);
    } else {
      out.rows += made->input.pixels.size(0);
    }
    seen += index.front().back().size(0);
    progress.step(fmt::format("{} passes", n + 1), std::min(seen, tokens));
  }
  for (std::size_t i = 0; i < out.layers.size(); ++i) {
    out.layers[i].index = at::cat(index[i]);
  }
  if (!ids.empty()) out.tokens = at::cat(ids);
  return out;
}

}  // namespace subspace::experts
