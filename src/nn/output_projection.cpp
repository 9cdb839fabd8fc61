#include <ATen/ATen.h>

#include <cmath>

#include "nn/attention.h"
#include "nn/fused.h"

namespace subspace::nn {

OutputProjection::OutputProjection(Parameters& parameters, const AttentionConfig& config,
                                   std::int64_t width, const std::string& base,
                                   const std::string& dense)
    : heads_(config.heads),
      groups_(config.o_groups),
      rank_(config.o_rank),
      value_(config.value),
      kind_(config.o_norm),
      eps_(config.latent_eps) {
  if (!config.shared_output()) {
    last_ = linear(parameters, dense, width, heads_ * value_, config.output_bias);
    return;
  }
  const std::int64_t latents = groups_ * rank_;
  down_ = parameters.weight(base + "o_a_proj.weight", {latents, heads_ / groups_ * value_});
  if (kind_ == LatentNorm::rms) {
    norm_ = parameters.norm(base + "o_a_layernorm.weight", {latents});
  } else if (kind_ == LatentNorm::rms_per_head) {
    norm_ = parameters.norm(base + "o_a_layernorm.weight", {heads_, rank_});
  }
  last_ = linear(parameters, base + "o_b_proj", width, latents, config.output_bias);
}

/// z [N, H d_v] -> the latents of the groups side by side, [N, G r].
at::Tensor OutputProjection::latent(const at::Tensor& z) const {
  at::Tensor latent;
  if (groups_ == 1) {
    latent = fused(z) ? fused_linear(z, down_) : at::linear(z, down_);
  } else {
    const at::Tensor by_group = z.unflatten(1, {groups_, -1}).transpose(0, 1);
    const at::Tensor weight = down_.unflatten(0, {groups_, rank_}).transpose(1, 2);
    latent = at::bmm(by_group, weight).transpose(0, 1).flatten(1);
  }
  if (kind_ == LatentNorm::none) return latent;
  const std::int64_t width[] = {rank_};
  if (groups_ == 1) {
    if (fused(latent) && norm_fits(latent)) return fused_norm(latent, norm_, eps_);
    return at::rms_norm(latent, width, norm_, eps_);
  }
  const at::Tensor unit = at::rms_norm(latent.unflatten(1, {groups_, rank_}), width, {}, eps_);
  return unit.flatten(1) * norm_;
}

at::Tensor OutputProjection::latent_of_normed_heads(const at::Tensor& z) const {
  // [G r, (H/G) d_v] -> [H, d_v, r]: the columns of head i in the rows of its group.
  const std::int64_t per = heads_ / groups_;
  const at::Tensor weight =
      down_.view({groups_, rank_, per, value_}).permute({0, 2, 3, 1}).flatten(0, 1);
  const at::Tensor by_head = z.unflatten(1, {heads_, value_}).transpose(0, 1);
  const std::int64_t width[] = {rank_};
  const at::Tensor unit = at::rms_norm(at::bmm(by_head, weight), width, {}, eps_);
  const at::Tensor normed = (unit * norm_.unsqueeze(1)).unflatten(0, {groups_, per});
  return (normed.sum(1) / std::sqrt(static_cast<double>(per))).transpose(0, 1).flatten(1);
}

at::Tensor OutputProjection::operator()(const at::Tensor& z) const {
  if (rank_ == 0) return last_(z);
  const at::Tensor rows = z.flatten(0, 1);
  const at::Tensor latents =
      kind_ == LatentNorm::rms_per_head ? latent_of_normed_heads(rows) : latent(rows);
  return last_(latents).unflatten(0, {z.size(0), z.size(1)});
}

}  // namespace subspace::nn
