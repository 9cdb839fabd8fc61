#pragma once

#include <vector>

#include "nn/expert_functions.h"
#include "nn/layers.h"

namespace subspace::nn {

/// What all layers of one pass share.
struct PassContext {
  RotaryTable rotary;  ///< of this pass's positions
  at::Tensor mask;     ///< bool [B, 1, T, T], true where a query (row) may see a key; or undefined
  bool training = false;
  at::Tensor auxiliary;  ///< sum of the layers' balance losses, undefined while there is none
  at::Tensor rows;       ///< [P] of the [B T] vectors: a block gives these alone; undefined: all
  std::vector<ExpertChoices>* choices = nullptr;  ///< each layer with experts adds its own
};

/// The way back from the heads to the model's width, z [B, T, H d_v] -> [B, T, d].
///
///   dense    z W_O
///   shared   concat_g(norm(sum_{i in g} z_i OA_i)) OB      OA_i: d_v x r,  OB: (G r) x d
///   rms_per_head: the sum over heads is of norm_i(z_i OA_i), divided by sqrt(heads of the group)
///
/// Stored as DeepSeek-V4 does: o_a_proj [G r, (H/G) d_v] (the rows of group g read its heads'
/// columns), o_b_proj [d, G r]. The per-head norm's weight is [H, r], the other's [G r].
class OutputProjection {
 public:
  /// `base`: what stands before "o_a_proj"; `dense`: name of the dense matrix.
  OutputProjection(Parameters& parameters, const AttentionConfig& config, std::int64_t width,
                   const std::string& base, const std::string& dense);
  at::Tensor operator()(const at::Tensor& z) const;

 private:
  at::Tensor latent(const at::Tensor& z) const;
  at::Tensor latent_of_normed_heads(const at::Tensor& z) const;

  std::int64_t heads_, groups_, rank_, value_;
  LatentNorm kind_;
  double eps_;
  Linear last_;
  at::Tensor down_, norm_;
};

/// Multi-head attention, x [B, T, d] -> [B, T, d], or [1, P, d] of the rows that the pass asks for;
/// x is what the block's norm gave.
///
/// MHA, GQA, MQA: q, k and v from one product, heads rotated in the configured part.
/// MLA (DeepSeek-V2, Liu et al. 2024): latents of queries and of keys and values, each with its
/// RMSNorm, and one rotary key for all heads, from one product:
///
///   [c, l, k_r] = x [QA, KVA, Kpe],  q = norm(c) Q = [q_n, q_r],  [k_n, v] = norm(l) KV
///   logits = scale (q_n k_n^T + R q_r (R k_r)^T)
///
/// or, with own_rotary_keys, a head's whole key from the latent, [k_n, k_r, v] = norm(l) KV.
///
/// Softmax and both products are PyTorch's scaled dot product attention, so that the best kernel
/// of the device does them and no T x T matrix is stored.
class Attention {
 public:
  Attention(Parameters& parameters, const ModelConfig& config, const std::string& layer);
  at::Tensor operator()(const at::Tensor& x, const PassContext& pass) const;

 private:
  at::Tensor attend(const at::Tensor& x, const PassContext& pass) const;
  struct Heads {
    at::Tensor q, k, v;  // [B, T, heads, width]
  };
  void build_plain(Parameters& parameters, const std::string& base, bool decoder_names);
  void build_latent(Parameters& parameters, const std::string& base);
  Heads plain_heads(const at::Tensor& x, const PassContext& pass) const;
  Heads latent_heads(const at::Tensor& x, const PassContext& pass) const;

  AttentionConfig config_;
  std::int64_t width_;
  Linear down_;          // everything that reads x
  Linear q_up_, kv_up_;  // MLA: from the latents to the heads
  NormLayer q_norm_, kv_norm_;
  std::optional<OutputProjection> output_;
};

}  // namespace subspace::nn
