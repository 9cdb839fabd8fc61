#pragma once

#include <ATen/core/Tensor.h>

#include "nn/attention.h"

namespace subspace::nn {

/// Whether fused_attention or fused_latent_attention compute this attention on such vectors: as
/// many key as query heads, values no wider than keys, rotated, sizes that kernels/rotary_heads.h
/// takes, no mask, positions 0 .. T - 1.
bool attention_fits(const AttentionConfig& config, const PassContext& pass, const at::Tensor& x);

/// Softmax attention z [B, T, H d_v] from queries, keys and values [B, T, 3 H d_v] side by side,
/// not yet rotated. Differentiable, as those of fused.h.
at::Tensor fused_attention(const at::Tensor& all, const AttentionConfig& config,
                           const RotaryTable& rotary);

/// The same from the latents of MLA, down [B, T, r_q + r_kv + shared key], with their norms, the
/// products from them and the rotation: everything that Attention says of MLA behind its first
/// product.
struct LatentWeights {
  at::Tensor q_norm, kv_norm, q_up, kv_up;
};
at::Tensor fused_latent_attention(const at::Tensor& down, const LatentWeights& weights,
                                  const AttentionConfig& config, const RotaryTable& rotary);

/// Which kernel attends on a GPU: ours for short sequences (kernels/short_attention.h), cuDNN's or
/// flash. `fastest` is the first where it can, else cuDNN's, or, where the same bits are wanted
/// every time, flash.
enum class AttentionKernel { fastest, brief, cudnn, flash };
void set_attention_kernel(AttentionKernel kernel);

}  // namespace subspace::nn
