#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace subspace {

/// How a rotary position embedding turns a head's vector. R(delta) acts on row vectors,
/// delta = query position - key position >= 0: for the pair of coordinates (a, b) of frequency f,
///   R[a,a] = R[b,b] = cos(delta theta_f),  R[a,b] = +sin,  R[b,a] = -sin.
/// Half layout pairs (j, j + dims/2) (Llama); interleaved pairs (2j, 2j + 1) (DeepSeek, GPT-J).
struct Rotary {
  enum class Layout { none, half, interleaved };
  Layout layout = Layout::none;
  /// Rotated coordinates of a head, and where they begin (partial rotary: 0; DeepSeek-V4: the
  /// tail).
  std::int64_t dims = 0;
  std::int64_t begin = 0;
  /// theta_f, radians a position, dims/2 of them, after the model's scaling (linear, llama3,
  /// YaRN..).
  std::vector<double> frequencies;
  /// Factor on cos and sin of each side (YaRN's attention factor); logits carry its square.
  double scale = 1;
};

/// The norm whose output a matrix reads. weight is gamma as it multiplies (Gemma's 1 + w is added
/// by the loader). Folding: rms  W <- diag(weight) W;  layer  W <- (I - 11^T/d) diag(weight) W; and
/// of the norm behind the heads  O <- O diag(weight);  O <- O (I - 11^T/d) diag(weight).
struct Norm {
  enum class Kind { none, rms, layer };
  Kind kind = Kind::none;
  at::Tensor weight;
  at::Tensor bias;
  double eps = 0;
};

/// One attention layer, row vectors (y = x W), float64 on the CPU. Tensors are views in whatever
/// stride order storage dictated; an undefined tensor means that the family has no such matrix.
///
///   H query heads, G key/value groups (g = i / (H/G)), d width, d_h = qk head width, d_v value
///   width, a/b: width that Q (a) and K, V (b) read from: d for MHA/GQA; r_q and r_kv for MLA.
struct AttentionLayer {
  std::int64_t index = 0;
  at::Tensor q;       ///< [H, a, d_h]     Q_i; MLA: the NoPE part
  at::Tensor q_rope;  ///< [H, a, d_rope]  Qpe_i; MLA only
  at::Tensor k;       ///< [G, b, d_h]     K_g; MLA: the NoPE part
  at::Tensor v;       ///< [G, b, d_v]
  at::Tensor o;       ///< [H, d_v, e]     O_i, e = d; with an output latent OA_i, e = o_lora_rank
  at::Tensor qa;      ///< [d, r_q]        shared query latent
  at::Tensor kva;     ///< [d, r_kv]       shared key/value latent
  at::Tensor kpe;     ///< [d, d_rope]     the one rotary key head of MLA
  at::Tensor ob;  ///< [groups, e, d]  output latent to model space; group of head i = i/(H/groups)

  // Biases of the projections above (same leading axes), undefined where there is none.
  at::Tensor q_bias, k_bias, v_bias;  ///< [H, d_h], [G, d_h], [G, d_v]
  at::Tensor o_bias;                  ///< [d]
  at::Tensor qa_bias, kva_bias, kpe_bias;

  // Norms in the order data meets them.
  Norm input;           ///< before Q/K/V (or QA, KVA, Kpe); BERT: the previous block's output norm
  Norm output;          ///< on what the heads write: alone, before it is added (Gemma 2 and 3), or
                        ///< with what it is added to (BERT); none where nothing stands there
  Norm q_latent;        ///< on x QA, read by q and q_rope
  Norm kv_latent;       ///< on x KVA, read by k and v
  Norm q_head, k_head;  ///< per head, after projection, before rotation (Qwen3, Gemma3); k_head is
                        ///< DeepSeek-V4's kv_norm, which the values read too
  at::Tensor sinks;     ///< [H] attention-sink logits

  Rotary rotary;
  double softmax_scale = 1;  ///< logits are multiplied by it (YaRN's mscale^2 included)
  double logit_softcap = 0;  ///< Gemma2; 0: none
  std::int64_t window = 0;   ///< sliding window; 0: full
  bool causal = true;
  /// The value is the key, norm and rotation included, and attention's output is turned back by the
  /// query's position before O (DeepSeek-V4); v equals k.
  bool values_share_key = false;
  /// Scalars on the latents after their norms (LongCat: sqrt(d / r)), 1 elsewhere; folded with
  /// norms.
  double q_latent_scale = 1, kv_latent_scale = 1;

  std::int64_t heads() const;
  std::int64_t groups() const;
  bool is_mla() const { return kva.defined(); }
};

/// What a configuration says of a model, before any weight is read.
struct ModelShape {
  std::string family;      ///< our adapter's name, e.g. "deepseek_v3"
  std::string model_type;  ///< as in config.json
  std::string attention;   ///< "MHA", "GQA", "MQA", "MLA", "grouped output latent", ...
  std::int64_t layers = 0;
  std::int64_t extra_layers = 0;  ///< multi-token-prediction layers behind them
  std::int64_t hidden_size = 0;
  std::int64_t heads = 0;
  std::int64_t kv_groups = 0;
  std::map<std::string, std::int64_t> dims;  ///< head_dim, q_lora_rank, qk_rope_head_dim, ...
  std::vector<std::string> notes;            ///< anything unusual, in words
};

}  // namespace subspace
