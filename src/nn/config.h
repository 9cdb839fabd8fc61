#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "attention/layer.h"
#include "base/json.h"
#include "nn/neuron_config.h"

namespace subspace::nn {

/// What a model is trained to say, and with it what it reads: tokens seen from both sides, tokens
/// seen from behind, an image; tokens seen from both sides whose class as a whole is asked for.
enum class Task { masked_lm, causal_lm, image_classification, sequence_classification };

/// Norm between the two matrices of a shared output latent: none; one RMSNorm a group on the
/// latent that its heads have summed; one RMSNorm a head before they sum.
enum class LatentNorm { none, rms, rms_per_head };

/// Symbols: H heads, G key/value heads, d width, q = nope + rope the width of a query.
struct AttentionConfig {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;        ///< = heads for MHA and MLA, 1 for MQA
  std::int64_t nope = 0, rope = 0;  ///< dimensions of a query without and with rotation
  std::int64_t value = 0;           ///< width of a value head
  std::int64_t q_rank = 0;          ///< query latent; 0: queries read the model's width (MLA only)
  std::int64_t kv_rank = 0;         ///< key/value latent; 0: no MLA
  std::int64_t o_rank = 0;          ///< output latent of each group; 0: one dense matrix
  std::int64_t o_groups = 1;
  LatentNorm o_norm = LatentNorm::none;
  /// MLA: every head has its own rotary key, from the latent as the rest of it is (the published
  /// encoder); else all heads share one, which is not part of the latent (DeepSeek).
  bool own_rotary_keys = false;
  bool bias = false;         ///< of q, k, v; MLA: of the projections to latents
  bool output_bias = false;  ///< of the last output projection
  bool causal = false;
  double latent_eps = 1e-6;  ///< of the norms on latents
  double scale = 1;          ///< on q k^T
  Rotary rotary;             ///< layout none where positions are learned

  bool is_mla() const { return kv_rank > 0; }
  bool shared_output() const { return o_rank > 0; }
  std::int64_t query() const { return nope + rope; }
  /// Width of a head's key that comes from the latent, and of the key that all heads share.
  std::int64_t latent_key() const { return own_rotary_keys ? query() : nope; }
  std::int64_t shared_key() const { return own_rotary_keys ? 0 : rope; }
};

/// Feed-forward: W2 gelu(W1 x), or W2 (silu(Wg x) * W1 x) if `gated`; width 0: none, and no norm
/// before it.
struct FeedForwardConfig {
  std::int64_t width = 0;
  bool gated = false;
  bool bias = false;
};

/// A mixture of gated feed-forward experts, routed as DeepSeek-V3 does.
struct MoeConfig {
  std::int64_t experts = 0, active = 0, shared = 0;  ///< shared: how many experts' width
  std::int64_t width = 0;                            ///< of one expert
  std::int64_t groups = 1, active_groups = 1;
  std::int64_t first_layer = 0;  ///< layers before it have the plain feed-forward
  bool softmax = false;          ///< scores; else sigmoid, as DeepSeek-V3
  bool normalize = true;         ///< the weights of the chosen sum to one before `scaling`
  double scaling = 1;
  double bias_speed = 0;  ///< step of the correction bias towards equal load; 0: it stays
  double auxiliary = 0;   ///< coefficient of the balance loss; 0: none
};

struct ImageConfig {
  std::int64_t size = 0, patch = 0, channels = 0, labels = 0;
  std::int64_t patches() const { return (size / patch) * (size / patch); }
};

/// A model, from one JSON object with the field names of Hugging Face.
///
/// `model_type` chooses the architecture and the names of its tensors: `bert`, `llama`,
/// `deepseek_v3` and `vit` are those of transformers, which loads such checkpoints;
/// `subspace_encoder`, `subspace_decoder` and `subspace_vit` are pre-norm models with any of the
/// attentions and outputs below, named after DeepSeek-V3's. An encoder whose `architectures` say
/// ForSequenceClassification has the head of one. docs/models.md lists the fields.
struct ModelConfig {
  std::string model_type;
  Task task = Task::causal_lm;
  std::int64_t width = 0, layers = 0, vocab = 0, positions = 0;
  std::int64_t token_types = 0;  ///< BERT's segment embeddings; 0: none
  bool layer_norm = false;       ///< LayerNorm with bias instead of RMSNorm
  bool post_norm = false;        ///< BERT: norms behind the residual sums
  bool learned_positions = false;
  bool tied = false;          ///< the head is the embedding
  bool decoder_names = true;  ///< tensor names of decoders, `model.layers.N.self_attn...`
  double norm_eps = 1e-6;
  double initializer_range = 0.02;
  double dropout = 0;  ///< the largest dropout asked for; evaluation has none, training refuses it
  AttentionConfig attention;
  FeedForwardConfig feed_forward;
  std::optional<MoeConfig> moe;
  std::optional<NeuronExpertsConfig> neuron_experts;
  std::optional<ImageConfig> image;
  std::int64_t labels = 0;  ///< classes of a text; 0: not the task
  Json json;                ///< as it was read

  /// One answer a sequence, from its first token's vector.
  bool classifies() const { return image.has_value() || labels > 0; }
  bool is_moe(std::int64_t layer) const { return moe && layer >= moe->first_layer; }
  bool has_neuron_experts(std::int64_t layer) const {
    return neuron_experts && layer >= neuron_experts->first_layer;
  }
  /// Tokens that one sequence can have: positions, or patches and the class token.
  std::int64_t tokens() const { return image ? image->patches() + 1 : positions; }
};

/// What `feed_forward` may be.
inline const std::set<std::string> kFeedForwards = {"dense", "ethos", "moe", "molae", "peer"};

/// Reads and checks a configuration. Throws InvalidValue naming the field for one that is unknown
/// (with the nearest known one), contradicts another (both named, and what would be right) or is
/// out of range; NotFound for one that is missing; Unsupported for an unknown model_type.
ModelConfig read_model_config(const Json& json, const std::string& where);

}  // namespace subspace::nn
