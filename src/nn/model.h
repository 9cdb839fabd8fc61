#pragma once

#include <memory>
#include <set>

#include "nn/feed_forward.h"

namespace subspace::nn {

/// What a model reads. Tokens [B, T] of any integer type, or pixels [B, channels, size, size].
struct Input {
  at::Tensor tokens;
  /// [B, T] whole numbers; a token sees those of its own number only: documents packed into one
  /// row, or padding. Undefined: all of a row are one.
  at::Tensor segments;
  /// [B, T]; undefined: 0 .. T - 1.
  at::Tensor positions;
  at::Tensor token_types;  ///< BERT; undefined: all zero
  at::Tensor pixels;
};

/// A Transformer of any configuration: embedding, blocks, norm, head.
///
/// The tasks differ in what is embedded and in the head:
///   masked_lm, causal_lm      token embedding, vocabulary head at every position, or those asked
///   image_classification      patches and a class token, linear classifier on the class token
///   sequence_classification   token embedding, C tanh(P h + p) + c of the first token's vector h:
///                             BERT's pooler and classifier (Devlin et al. 2019), without dropout
///
/// Inside, the vocabulary is padded to a multiple of 64, because the head's products leave the
/// fast path of matrix libraries otherwise (4 times slower for 30,522 columns on an H200). Padding
/// never shows: its logits are minus infinity in the loss and cut off elsewhere, its gradient is
/// exactly zero, checkpoints do not have it.
class Model {
 public:
  struct Options {
    c10::Device device = at::kCPU;
    c10::ScalarType dtype = at::kFloat;
    std::uint64_t seed = 0;
    bool fill = true;  ///< false: parameters stay zero, for a model that is loaded next
    std::optional<AdapterConfig> adapter = {};  ///< on a frozen model
  };
  Model(ModelConfig config, const Options& options);
  ~Model();
  Model(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }

  /// Vectors that the head reads, [B, T, d]. A balance loss, if there is one, is left in
  /// `auxiliary`. Throws InvalidShape for sequences longer than the model, images of another size.
  at::Tensor hidden(const Input& input, bool training = false,
                    at::Tensor* auxiliary = nullptr) const;
  /// Rows [P, d] of them, in order of `rows` [P] (places in [B T]; undefined: all). The last block
  /// computes only these behind its attention, unless it has experts, whose balance or batch norm
  /// needs all.
  at::Tensor hidden_rows(const Input& input, const at::Tensor& rows, bool training = false,
                         at::Tensor* auxiliary = nullptr) const;
  /// [.., d] -> [.., vocabulary]; where the model classifies [P, d] -> [P, labels], or the first
  /// vectors of [B, T, d] -> [B, labels].
  at::Tensor logits(const at::Tensor& hidden) const;
  /// Sum over rows of -log p(target), in float32 at least; rows [N, d], targets [N] int64, -100:
  /// no target. Divided by their number it is nats a predicted token.
  at::Tensor loss_sum(const at::Tensor& rows, const at::Tensor& targets) const;
  /// factor * loss_sum for training, factor a scalar on the device: where kernels are fused the
  /// logits are not kept, and backward() must start from the result or a sum that it is part of.
  at::Tensor scaled_loss(const at::Tensor& rows, const at::Tensor& targets,
                         const at::Tensor& factor) const;
  /// Tensors that a model pre-trained for another task does not have: those of the classifier of
  /// texts.
  std::set<std::string> new_tensors() const;
  /// The first part of the model whose output is not finite, "model.layers.3", or nothing; for
  /// finding out why a loss is NaN. Waits for the device behind every layer.
  std::string first_nonfinite(const Input& input) const;
  /// What each layer that has experts counts of its choices in training, first layer first.
  struct LayerUsage {
    std::int64_t layer = 0;
    const ExpertUsage* usage = nullptr;
  };
  std::vector<LayerUsage> expert_usage() const;
  /// What each of these layers chooses for an input outside of training, first layer first.
  std::vector<ExpertChoices> expert_choices(const Input& input) const;
  const std::vector<Block>& blocks() const { return blocks_; }
  /// What happens to the model itself after an optimiser's step: balance of experts.
  void after_step();

 private:
  struct Embedding;
  struct Head;

  at::Tensor embed(const Input& input) const;
  at::Tensor through_blocks(const Input& input, const at::Tensor& rows, bool training,
                            at::Tensor* auxiliary, PassContext& pass) const;
  PassContext pass_for(const Input& input, std::int64_t tokens) const;

  ModelConfig config_;
  Parameters parameters_;
  std::unique_ptr<Embedding> embedding_;
  std::vector<Block> blocks_;
  NormLayer norm_;
  std::unique_ptr<Head> head_;
  RotaryTable rotary_;
};

/// A model with the weights of a folder in Hugging Face layout, in `dtype`. Throws as Checkpoint,
/// read_model_config and Parameters::load.
std::unique_ptr<Model> load_model(const std::filesystem::path& folder,
                                  const Model::Options& options, int threads);

/// config.json and model.safetensors in `folder`, in the layout of Hugging Face: what
/// transformers loads where it has the architecture, and what `subspace spectra` reads.
void save_model(const Model& model, const std::filesystem::path& folder);

}  // namespace subspace::nn
