#include "attention/fused.h"

#include <ATen/ATen.h>

#include "base/error.h"

namespace subspace {
namespace {

/// One entry of `per_group` a head: [G, ..] -> [H, ..] as a view where the groups are whole heads.
at::Tensor for_heads(const at::Tensor& per_group, std::int64_t heads) {
  const std::int64_t groups = per_group.size(0);
  if (groups == heads) return per_group;
  std::vector<std::int64_t> shape = per_group.sizes().vec();
  shape.insert(shape.begin() + 1, heads / groups);
  at::Tensor expanded = per_group.unsqueeze(1).expand(shape);
  shape.erase(shape.begin());
  shape[0] = heads;
  return expanded.reshape(shape);
}

/// What reads x' = norm(x) becomes what reads x, up to the norm's positive factor for each token.
at::Tensor fold_input(const at::Tensor& weight, const Norm& norm, double scale = 1) {
  if (!weight.defined() || (norm.kind == Norm::Kind::none && scale == 1)) return weight;
  at::Tensor out = weight;
  if (norm.kind != Norm::Kind::none) out = norm.weight.unsqueeze(1) * out;
  if (scale != 1) out = out * scale;
  // x - mean(x) = x (I - 11^T/d): taking each column's mean off the rows of W does the same.
  if (norm.kind == Norm::Kind::layer) out = out - out.mean(-2, /*keepdim=*/true);
  return out;
}

at::Tensor fold_bias(const at::Tensor& bias, const at::Tensor& weight, const Norm& norm) {
  if (!weight.defined() || norm.kind != Norm::Kind::layer || !norm.bias.defined()) return bias;
  const at::Tensor added = at::matmul(norm.bias, weight);
  return bias.defined() ? bias + added : added;
}

}  // namespace

AttentionLayer fold_norms(const AttentionLayer& layer) {
  AttentionLayer out = layer;
  auto fold = [](at::Tensor& weight, at::Tensor& bias, const Norm& norm, double scale = 1) {
    bias = fold_bias(bias, weight, norm);
    weight = fold_input(weight, norm, scale);
  };
  at::Tensor none;
  const bool latent_queries = out.qa.defined();
  if (latent_queries) fold(out.qa, out.qa_bias, layer.input);
  if (out.is_mla()) {
    fold(out.kva, out.kva_bias, layer.input);
    fold(out.kpe, out.kpe_bias, layer.input);
    fold(out.k, out.k_bias, layer.kv_latent, layer.kv_latent_scale);
    fold(out.v, out.v_bias, layer.kv_latent, layer.kv_latent_scale);
  } else {
    fold(out.k, out.k_bias, layer.input);
    fold(out.v, out.v_bias, layer.input);
  }
  const Norm& before_queries = latent_queries ? layer.q_latent : layer.input;
  fold(out.q, out.q_bias, before_queries, layer.q_latent_scale);
  fold(out.q_rope, none, before_queries, layer.q_latent_scale);
  auto fold_head = [](at::Tensor& weight, at::Tensor& bias, const Norm& norm) {
    if (norm.kind == Norm::Kind::none || !norm.weight.defined()) return;
    weight = weight * norm.weight;
    if (bias.defined()) bias = bias * norm.weight;
  };
  fold_head(out.q, out.q_bias, layer.q_head);
  fold_head(out.k, out.k_bias, layer.k_head);
  if (layer.values_share_key) fold_head(out.v, out.v_bias, layer.k_head);
  out.input = out.q_latent = out.kv_latent = out.q_head = out.k_head = Norm{};
  out.q_latent_scale = out.kv_latent_scale = 1;
  return out;
}

Factored vo(const AttentionLayer& layer) { return {for_heads(layer.v, layer.heads()), layer.o}; }

Factored qk(const AttentionLayer& layer) {
  return {layer.q, for_heads(layer.k, layer.heads()).transpose(1, 2)};
}

Factored qk_at(const AttentionLayer& layer, std::int64_t delta) {
  if (layer.rotary.layout == Rotary::Layout::none) {
    fail(ErrorCode::InvalidValue, "layer {}: no rotary position embedding, so no offset {}",
         layer.index, delta);
  }
  const auto offset = static_cast<double>(delta);
  if (layer.q_rope.defined()) {
    return {rotate(layer.q_rope, layer.rotary, offset),
            layer.kpe.t().unsqueeze(0).expand({layer.heads(), -1, -1})};
  }
  return {rotate(layer.q, layer.rotary, offset), for_heads(layer.k, layer.heads()).transpose(1, 2)};
}

at::Tensor rotate(const at::Tensor& x, const Rotary& rotary, double delta) {
  const at::Tensor angles =
      at::tensor(rotary.frequencies, at::TensorOptions().dtype(at::kDouble)).to(x.device()) * delta;
  // The factor stands on both sides of the product; here the product is one rotation.
  const double factor = rotary.scale * rotary.scale;
  const at::Tensor cos = angles.cos() * factor;
  const at::Tensor sin = angles.sin() * factor;
  at::Tensor out = x.clone(at::MemoryFormat::Contiguous);
  const at::Tensor part = x.narrow(-1, rotary.begin, rotary.dims);
  at::Tensor target = out.narrow(-1, rotary.begin, rotary.dims);
  const std::int64_t half = rotary.dims / 2;
  if (rotary.layout == Rotary::Layout::half) {
    const at::Tensor a = part.narrow(-1, 0, half);
    const at::Tensor b = part.narrow(-1, half, half);
    target.narrow(-1, 0, half).copy_(a * cos - b * sin);
    target.narrow(-1, half, half).copy_(a * sin + b * cos);
  } else {
    const at::Tensor a = part.slice(-1, 0, rotary.dims, 2);
    const at::Tensor b = part.slice(-1, 1, rotary.dims, 2);
    target.slice(-1, 0, rotary.dims, 2).copy_(a * cos - b * sin);
    target.slice(-1, 1, rotary.dims, 2).copy_(a * sin + b * cos);
  }
  return out;
}

}  // namespace subspace
