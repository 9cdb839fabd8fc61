#include "nn/feed_forward.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "kernels/swiglu.h"
#include "nn/fused.h"

namespace subspace::nn {

FeedForward::FeedForward(Parameters& parameters, const FeedForwardConfig& config,
                         std::int64_t width, const Names& names)
    : gated_(config.gated) {
  std::vector<Rows> rows;
  if (gated_) rows.push_back({names.gate, config.width});
  rows.push_back({names.up, config.width});
  up_ = joined_linear(parameters, rows, width, config.bias);
  down_ = linear(parameters, names.down, width, config.width, config.bias);
}

at::Tensor FeedForward::inner(const at::Tensor& x) const {
  if (gated_ && fused(x) && up_.weight.size(0) % (2 * kernels::kSwigluVector) == 0) {
    return fused_swiglu(up_.without_bias(x), up_.bias);
  }
  const at::Tensor up = up_(x);
  if (!gated_) return at::gelu(up);
  const std::int64_t width = up.size(-1) / 2;
  return at::silu(up.narrow(-1, 0, width)) * up.narrow(-1, width, width);
}

at::Tensor FeedForward::operator()(const at::Tensor& x) const { return down_(inner(x)); }

at::Tensor FeedForward::without_bias(const at::Tensor& x) const {
  return down_.without_bias(inner(x));
}

std::string layer_name(const ModelConfig& config, std::int64_t index) {
  const char* stem = config.decoder_names          ? "model.layers"
                     : config.model_type == "bert" ? "bert.encoder.layer"
                                                   : "vit.encoder.layer";
  return fmt::format("{}.{}.", stem, index);
}

Block::Block(Parameters& parameters, const ModelConfig& config, std::int64_t index)
    : post_norm_(config.post_norm) {
  const std::string layer = layer_name(config, index);
  auto norm = [&](const char* decoder, const char* bert, const char* vit) {
    const char* name = config.decoder_names ? decoder : config.post_norm ? bert : vit;
    return norm_layer(parameters, layer + name, config.width, config.norm_eps, config.layer_norm);
  };
  first_ = norm("input_layernorm", "attention.output.LayerNorm", "layernorm_before");
  attention_.emplace(parameters, config, layer);
  const bool experts = config.is_moe(index) || config.has_neuron_experts(index);
  if (!experts && config.feed_forward.width == 0) return;
  second_ = norm("post_attention_layernorm", "output.LayerNorm", "layernorm_after");
  if (config.is_moe(index)) {
    feed_forward_.emplace<MixtureOfExperts>(parameters, *config.moe, config.width, layer + "mlp.");
  } else if (config.has_neuron_experts(index)) {
    feed_forward_.emplace<NeuronExperts>(parameters, *config.neuron_experts, config.width,
                                         layer + "mlp.");
  } else {
    const FeedForward::Names names =
        config.decoder_names
            ? FeedForward::Names{layer + "mlp.gate_proj", layer + "mlp.up_proj",
                                 layer + "mlp.down_proj"}
            : FeedForward::Names{"", layer + "intermediate.dense", layer + "output.dense"};
    feed_forward_.emplace<FeedForward>(parameters, config.feed_forward, config.width, names);
  }
}

at::Tensor Block::feed_forward(const at::Tensor& x, PassContext& pass) const {
  if (const auto* experts = std::get_if<MixtureOfExperts>(&feed_forward_)) {
    return (*experts)(x, pass);
  }
  if (const NeuronExperts* experts = neuron_experts()) return (*experts)(x, pass);
  return std::get<FeedForward>(feed_forward_)(x);
}

at::Tensor Block::operator()(const at::Tensor& x, PassContext& pass) const {
  if (post_norm_) {
    const at::Tensor attended = first_(x + (*attention_)(x, pass));
    return second_(attended + feed_forward(attended, pass));
  }
  Residual stream{x, {}, {}};
  (*this)(stream, pass);
  return stream.sum();
}

void Block::operator()(Residual& stream, PassContext& pass) const {
  if (post_norm_) {
    stream = {(*this)(stream.sum(), pass), {}, {}};
    return;
  }
  const at::Tensor read = first_(stream);
  stream.delta = (*attention_)(read, pass);
  stream.x = chosen_rows(stream.x, pass.rows);
  if (std::holds_alternative<std::monostate>(feed_forward_)) return;
  const at::Tensor normed = second_(stream);
  const auto* plain = std::get_if<FeedForward>(&feed_forward_);
  if (plain != nullptr && fused(normed)) {
    stream.delta = plain->without_bias(normed);
    stream.bias = plain->output_bias();
  } else {
    stream.delta = feed_forward(normed, pass);
  }
}

void Block::after_step() {
  if (auto* experts = std::get_if<MixtureOfExperts>(&feed_forward_)) experts->after_step();
}

const ExpertUsage* Block::usage() const {
  if (const auto* experts = std::get_if<MixtureOfExperts>(&feed_forward_)) {
    return &experts->usage();
  }
  const NeuronExperts* experts = neuron_experts();
  return experts != nullptr ? &experts->usage() : nullptr;
}

}  // namespace subspace::nn
