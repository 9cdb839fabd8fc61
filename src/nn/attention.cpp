#include "nn/attention.h"

#include <ATen/ATen.h>

#include "nn/fused_attention.h"

namespace subspace::nn {

// B batch, T tokens, H query heads, G key/value heads.

Attention::Attention(Parameters& parameters, const ModelConfig& config, const std::string& layer)
    : config_(config.attention), width_(config.width) {
  const bool bert = config.model_type == "bert";
  const std::string base = layer + (config.decoder_names ? "self_attn."
                                    : bert               ? "attention.self."
                                                         : "attention.attention.");
  if (config_.is_mla()) {
    build_latent(parameters, base);
  } else {
    build_plain(parameters, base, config.decoder_names);
  }
  output_.emplace(parameters, config_, width_, base,
                  config.decoder_names ? base + "o_proj" : layer + "attention.output.dense");
}

void Attention::build_plain(Parameters& parameters, const std::string& base, bool decoder_names) {
  const char* names[] = {"q_proj", "k_proj", "v_proj"};
  const char* encoder_names[] = {"query", "key", "value"};
  const auto& chosen = decoder_names ? names : encoder_names;
  down_ = joined_linear(parameters,
                        {{base + chosen[0], config_.heads * config_.value},
                         {base + chosen[1], config_.kv_heads * config_.value},
                         {base + chosen[2], config_.kv_heads * config_.value}},
                        width_, config_.bias);
}

void Attention::build_latent(Parameters& parameters, const std::string& base) {
  const AttentionConfig& c = config_;
  const Rows kv = {base + "kv_a_proj_with_mqa", c.kv_rank + c.shared_key()};
  const std::int64_t queries = c.heads * c.query();
  if (c.q_rank > 0) {
    down_ = joined_linear(parameters, {{base + "q_a_proj", c.q_rank}, kv}, width_, c.bias);
    q_norm_ = norm_layer(parameters, base + "q_a_layernorm", c.q_rank, c.latent_eps, false);
    q_up_ = linear(parameters, base + "q_b_proj", queries, c.q_rank, false);
  } else if (c.bias) {
    // q_proj has no bias where the latents' projections have one, so the two stay apart.
    q_up_ = linear(parameters, base + "q_proj", queries, width_, false);
    down_ = joined_linear(parameters, {kv}, width_, true);
  } else {
    down_ = joined_linear(parameters, {{base + "q_proj", queries}, kv}, width_, false);
  }
  kv_norm_ = norm_layer(parameters, base + "kv_a_layernorm", c.kv_rank, c.latent_eps, false);
  kv_up_ = linear(parameters, base + "kv_b_proj", c.heads * (c.latent_key() + c.value), c.kv_rank,
                  false);
}

Attention::Heads Attention::plain_heads(const at::Tensor& x, const PassContext& pass) const {
  const std::int64_t q = config_.heads, kv = config_.kv_heads;
  const at::Tensor all = down_(x).unflatten(-1, {q + 2 * kv, config_.value});
  // Queries and keys turn by the same table: one call for both.
  const at::Tensor turned = pass.rotary.rotate(all.narrow(2, 0, q + kv));
  return {turned.narrow(2, 0, q), turned.narrow(2, q, kv), all.narrow(2, q + kv, kv)};
}

Attention::Heads Attention::latent_heads(const at::Tensor& x, const PassContext& pass) const {
  const AttentionConfig& c = config_;
  const at::Tensor down = down_(x);
  const std::int64_t before = down.size(-1) - c.kv_rank - c.shared_key();
  at::Tensor query = down.narrow(-1, 0, before);
  if (c.q_rank > 0) {
    query = q_up_(q_norm_(query));
  } else if (before == 0) {
    query = q_up_(x);
  }
  query = query.unflatten(-1, {c.heads, c.query()});
  const at::Tensor up = kv_up_(kv_norm_(down.narrow(-1, before, c.kv_rank)))
                            .unflatten(-1, {c.heads, c.latent_key() + c.value});
  Heads heads = {query, up.narrow(-1, 0, c.latent_key()), up.narrow(-1, c.latent_key(), c.value)};
  if (c.rope == 0) return heads;
  if (c.own_rotary_keys) {
    heads.q = pass.rotary.rotate(heads.q);
    heads.k = pass.rotary.rotate(heads.k);
    return heads;
  }
  const at::Tensor key = down.narrow(-1, before + c.kv_rank, c.rope).unsqueeze(2);
  const at::Tensor turned = pass.rotary.rotate(query.narrow(-1, c.nope, c.rope));
  const at::Tensor turned_key =
      pass.rotary.rotate(key).expand({key.size(0), key.size(1), c.heads, c.rope});
  if (c.nope == 0) {
    heads.q = turned;
    heads.k = turned_key;
  } else {
    heads.q = at::cat({query.narrow(-1, 0, c.nope), turned}, -1);
    heads.k = at::cat({heads.k, turned_key}, -1);
  }
  return heads;
}

/// z [B, T, H d_v].
at::Tensor Attention::attend(const at::Tensor& x, const PassContext& pass) const {
  if (attention_fits(config_, pass, x)) {
    const at::Tensor down = down_(x);
    if (!config_.is_mla()) return fused_attention(down, config_, pass.rotary);
    const LatentWeights weights{q_norm_.weight, kv_norm_.weight, q_up_.weight, kv_up_.weight};
    return fused_latent_attention(down, weights, config_, pass.rotary);
  }
  const Heads heads = config_.is_mla() ? latent_heads(x, pass) : plain_heads(x, pass);
  std::optional<at::Tensor> mask;
  if (pass.mask.defined()) mask = pass.mask;
  return at::scaled_dot_product_attention(
             heads.q.transpose(1, 2), heads.k.transpose(1, 2), heads.v.transpose(1, 2), mask,
             /*dropout_p=*/0.0, /*is_causal=*/config_.causal && !mask, config_.scale,
             /*enable_gqa=*/config_.kv_heads != config_.heads)
      .transpose(1, 2)
      .flatten(2);
}

at::Tensor Attention::operator()(const at::Tensor& x, const PassContext& pass) const {
  return (*output_)(chosen_rows(attend(x, pass), pass.rows));
}

}  // namespace subspace::nn
