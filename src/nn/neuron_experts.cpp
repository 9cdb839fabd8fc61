#include "nn/neuron_experts.h"

#include <ATen/ATen.h>

#include <cmath>

namespace subspace::nn {
namespace {

using Kind = NeuronExpertsConfig::Kind;

/// E[gelu(u)^2] of a standard normal u: the power of a generated hidden unit.
constexpr double kGeluPower = 0.4252;

double deviation(std::int64_t terms) { return 1 / std::sqrt(static_cast<double>(terms)); }

}  // namespace

NeuronExperts::NeuronExperts(Parameters& parameters, const NeuronExpertsConfig& config,
                             std::int64_t width, const std::string& base)
    : config_(config), router_(parameters, config, width, base) {
  build(parameters, width, base);
  usage_ = ExpertUsage(config.heads, config.experts, parameters.all().back().value);
}

void NeuronExperts::build(Parameters& parameters, std::int64_t width, const std::string& base) {
  const NeuronExpertsConfig& c = config_;
  const std::int64_t inner = c.kind == Kind::ethos ? c.hidden : c.latent;
  auto tensor = [&](const char* name, std::int64_t rows, std::int64_t columns, double spread) {
    return parameters.weight(base + name + ".weight", {rows, columns}, spread);
  };
  if (c.kind == Kind::ethos) {
    const double power = kGeluPower * static_cast<double>(inner);
    z_ = tensor("expert_latents", c.experts, c.latent, c.latent_range);
    w1_ = tensor("w1", inner, c.latent, deviation(c.latent) / c.latent_range);
    read_.weight = tensor("w_u", inner, width, deviation(width) / std::sqrt(power));
    write_.weight = tensor("w_v", width, inner, 1 / std::sqrt(power));
    return;
  }
  const std::int64_t stored = c.kind == Kind::peer ? width : c.latent;
  down_ = tensor("expert_down", c.experts, stored, deviation(stored));
  up_ = tensor("expert_up", c.experts, stored, deviation(c.heads));
  if (c.kind == Kind::peer) return;
  read_.weight = tensor("w_u", inner, width, deviation(width));
  write_.weight = tensor("w_v", width, inner, deviation(inner));
}

at::Tensor NeuronExperts::experts(const at::Tensor& x, const Selections& chosen) const {
  const at::Tensor scores = chosen.scores.flatten(1), index = chosen.index.flatten(1);
  switch (config_.kind) {
    case Kind::ethos: {
      const at::Tensor acc = generated_experts(read_(x), scores, index, z_, w1_.t());
      return write_(acc / static_cast<double>(config_.heads));
    }
    case Kind::molae:
      return write_(stored_experts(read_(x), scores, index, down_, up_));
    case Kind::peer:
      break;
  }
  return stored_experts(x, scores, index, down_, up_);
}

at::Tensor NeuronExperts::operator()(const at::Tensor& x, const PassContext& pass) const {
  const at::Tensor rows = x.flatten(0, -2);
  const Selections chosen = router_(rows, pass.training);
  if (pass.training) usage_.count(chosen.index);
  if (pass.choices != nullptr) pass.choices->push_back({rows, chosen});
  return experts(rows, chosen).view_as(x);
}

}  // namespace subspace::nn
