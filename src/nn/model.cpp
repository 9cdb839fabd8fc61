#include "nn/model.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <limits>

#include "base/error.h"
#include "kernels/cross_entropy.h"
#include "nn/fused.h"

namespace subspace::nn {
namespace {

constexpr std::int64_t kVocabularyMultiple = 64;

}  // namespace

/// Vectors [B, T, d] from tokens or pixels.
struct Model::Embedding {
  Embedding(Parameters& parameters, const ModelConfig& config) : config(config) {
    const bool bert = config.model_type == "bert";
    const std::int64_t width = config.width;
    if (config.image) {
      const std::string base = config.decoder_names ? "model.embeddings." : "vit.embeddings.";
      const ImageConfig& image = *config.image;
      class_token = parameters.weight(base + "cls_token", {1, 1, width});
      if (config.learned_positions) {
        positions =
            parameters.weight(base + "position_embeddings", {1, image.patches() + 1, width});
      }
      const std::string patches = base + "patch_embeddings.projection";
      patch.weight =
          parameters.weight(patches + ".weight", {width, image.channels, image.patch, image.patch});
      patch.bias = parameters.bias({{patches + ".bias", {width}}});
      return;
    }
    const std::string base = bert ? "bert.embeddings." : "model.";
    tokens =
        parameters.padded_weight(base + (bert ? "word_embeddings.weight" : "embed_tokens.weight"),
                                 {config.vocab, width}, kVocabularyMultiple);
    if (config.learned_positions) {
      positions = parameters.weight(base + "position_embeddings.weight", {config.positions, width});
    }
    if (bert) {
      types = parameters.weight(base + "token_type_embeddings.weight", {config.token_types, width});
      norm = norm_layer(parameters, base + "LayerNorm", width, config.norm_eps, true);
    }
  }

  at::Tensor of_tokens(const Input& input) const {
    at::Tensor x = at::embedding(tokens, input.tokens);
    if (types.defined()) {
      x = x + (input.token_types.defined() ? at::embedding(types, input.token_types) : types[0]);
    }
    if (positions.defined()) {
      x = x + (input.positions.defined() ? at::embedding(positions, input.positions)
                                         : positions.narrow(0, 0, x.size(1)));
    }
    return norm.weight.defined() ? norm(x) : x;
  }

  /// A patch's vector is a product with its pixels: the convolution whose stride is its width.
  at::Tensor of_pixels(const at::Tensor& pixels) const {
    const std::int64_t p = config.image->patch;
    const at::Tensor rows = pixels
                                .unflatten(3, {-1, p})  // [B, c, S, W', p]
                                .unflatten(2, {-1, p})  // [B, c, H', p, W', p]
                                .permute({0, 2, 4, 1, 3, 5})
                                .flatten(3)
                                .flatten(1, 2);
    const at::Tensor vectors = at::linear(rows, patch.weight.flatten(1), patch.bias);
    const at::Tensor x =
        at::cat({class_token.expand({vectors.size(0), 1, vectors.size(2)}), vectors}, 1);
    return positions.defined() ? x + positions : x;
  }

  const ModelConfig& config;
  at::Tensor tokens, positions, types, class_token;
  Linear patch;
  NormLayer norm;
};

/// Logits from vectors.
struct Model::Head {
  Head(Parameters& parameters, const ModelConfig& config, const at::Tensor& embedding) {
    if (config.image) {
      last = linear(parameters, "classifier", config.image->labels, config.width, true);
      return;
    }
    if (config.labels > 0) {
      pooler = linear(parameters, pooler_name(config), config.width, config.width, true);
      last = linear(parameters, "classifier", config.labels, config.width, true);
      return;
    }
    if (config.model_type == "bert") {
      const std::string base = "cls.predictions.";
      transform = linear(parameters, base + "transform.dense", config.width, config.width, true);
      norm =
          norm_layer(parameters, base + "transform.LayerNorm", config.width, config.norm_eps, true);
      last.bias = parameters.bias({{base + "bias", {config.vocab}}});
    }
    last.weight = config.tied
                      ? embedding
                      : parameters.padded_weight("lm_head.weight", {config.vocab, config.width},
                                                 kVocabularyMultiple);
    const std::int64_t padded = last.weight.size(0);
    if (padded == config.vocab) return;
    padding = at::full({padded}, -std::numeric_limits<double>::infinity(),
                       last.weight.options().requires_grad(false));
    padding.narrow(0, 0, config.vocab).zero_();
  }

  static std::string pooler_name(const ModelConfig& config) {
    return config.model_type == "bert" ? "bert.pooler.dense" : "pooler.dense";
  }

  at::Tensor operator()(const at::Tensor& rows) const {
    if (pooler.weight.defined()) {
      return at::linear(at::tanh(pooler(rows)), last.weight, last.bias);
    }
    const at::Tensor x = transform.weight.defined() ? norm(at::gelu(transform(rows))) : rows;
    at::Tensor bias = last.bias;
    if (padding.defined()) {
      bias = bias.defined()
                 ? at::cat({bias, padding.narrow(0, bias.size(0), padding.size(0) - bias.size(0))})
                 : padding;
    }
    return at::linear(x, last.weight, bias);
  }

  Linear pooler, transform, last;
  NormLayer norm;
  at::Tensor padding;  // zero, and minus infinity where the vocabulary is padded
};

Model::Model(ModelConfig config, const Options& options)
    : config_(std::move(config)),
      parameters_({.tensor = at::TensorOptions().dtype(options.dtype).device(options.device),
                   .range = config_.initializer_range,
                   .seed = options.seed,
                   .fill = options.fill,
                   .adapter = options.adapter}) {
  embedding_ = std::make_unique<Embedding>(parameters_, config_);
  for (std::int64_t i = 0; i < config_.layers; ++i) blocks_.emplace_back(parameters_, config_, i);
  if (!config_.post_norm) {
    norm_ = norm_layer(parameters_, config_.decoder_names ? "model.norm" : "vit.layernorm",
                       config_.width, config_.norm_eps, config_.layer_norm);
  }
  head_ = std::make_unique<Head>(parameters_, config_, embedding_->tokens);
  rotary_ = RotaryTable(config_.attention.rotary, config_.tokens(),
                        at::TensorOptions().dtype(options.dtype).device(options.device));
}

Model::~Model() = default;

PassContext Model::pass_for(const Input& input, std::int64_t tokens) const {
  if (tokens > config_.tokens()) {
    fail(ErrorCode::InvalidShape,
         "a sequence of {} tokens is longer than the model's {} (max_position_embeddings)", tokens,
         config_.tokens());
  }
  PassContext pass;
  pass.rotary = rotary_.at_positions(tokens, input.positions);
  if (!input.segments.defined()) return pass;
  pass.mask = input.segments.unsqueeze(2) == input.segments.unsqueeze(1);
  if (config_.attention.causal) pass.mask = pass.mask.tril();
  pass.mask = pass.mask.unsqueeze(1);
  return pass;
}

at::Tensor Model::embed(const Input& input) const {
  if (!config_.image) return embedding_->of_tokens(input);
  const ImageConfig& image = *config_.image;
  const at::IntArrayRef found = input.pixels.sizes();
  if (found.size() != 4 ||
      found.slice(1) != at::IntArrayRef({image.channels, image.size, image.size})) {
    fail(ErrorCode::InvalidShape, "images of shape {}; expected [images, {}, {}, {}]",
         shape_text({found.data(), found.size()}), image.channels, image.size, image.size);
  }
  return embedding_->of_pixels(input.pixels);
}

at::Tensor Model::hidden(const Input& input, bool training, at::Tensor* auxiliary) const {
  // Before the embedding, which may have no row for a position that is too far.
  PassContext pass = pass_for(input, config_.image ? config_.tokens() : input.tokens.size(1));
  return through_blocks(input, {}, training, auxiliary, pass);
}

at::Tensor Model::hidden_rows(const Input& input, const at::Tensor& rows, bool training,
                              at::Tensor* auxiliary) const {
  PassContext pass = pass_for(input, config_.image ? config_.tokens() : input.tokens.size(1));
  const std::int64_t last = config_.layers - 1;
  const bool experts = config_.is_moe(last) || config_.has_neuron_experts(last);
  const bool early = rows.defined() && !config_.post_norm && !experts;
  const at::Tensor hidden =
      through_blocks(input, early ? rows : at::Tensor(), training, auxiliary, pass);
  return (early ? hidden : chosen_rows(hidden, rows)).flatten(0, 1);
}

at::Tensor Model::through_blocks(const Input& input, const at::Tensor& rows, bool training,
                                 at::Tensor* auxiliary, PassContext& pass) const {
  pass.training = training;
  Residual stream{embed(input), {}, {}};
  for (const Block& block : blocks_) {
    if (&block == &blocks_.back()) pass.rows = rows;
    block(stream, pass);
  }
  if (auxiliary != nullptr) *auxiliary = pass.auxiliary;
  return norm_.weight.defined() ? norm_(stream) : stream.sum();
}

std::set<std::string> Model::new_tensors() const {
  if (config_.labels == 0) return {};
  const std::string pooler = Head::pooler_name(config_);
  return {pooler + ".weight", pooler + ".bias", "classifier.weight", "classifier.bias"};
}

std::string Model::first_nonfinite(const Input& input) const {
  const at::NoGradGuard no_gradient;
  auto bad = [](const at::Tensor& x) { return !at::isfinite(x).all().item<bool>(); };
  PassContext pass = pass_for(input, config_.image ? config_.tokens() : input.tokens.size(1));
  at::Tensor x = embed(input);
  if (bad(x)) return "the embedding";
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    x = blocks_[i](x, pass);
    if (bad(x)) return fmt::format("layer {}", i);
  }
  return bad(logits(norm_.weight.defined() ? norm_(x) : x)) ? "the head" : "";
}

at::Tensor Model::logits(const at::Tensor& hidden) const {
  if (config_.classifies()) return (*head_)(hidden.dim() == 3 ? hidden.select(1, 0) : hidden);
  return (*head_)(hidden).narrow(-1, 0, config_.vocab);
}

at::Tensor Model::loss_sum(const at::Tensor& rows, const at::Tensor& targets) const {
  const at::Tensor logits = (*head_)(rows);
  const bool wide = logits.scalar_type() == at::kDouble;
  return at::nll_loss(at::log_softmax(logits, -1, wide ? at::kDouble : at::kFloat), targets, {},
                      at::Reduction::Sum);
}

at::Tensor Model::scaled_loss(const at::Tensor& rows, const at::Tensor& targets,
                              const at::Tensor& factor) const {
  const at::Tensor& weight = head_->last.weight;
  const bool plain = !config_.classifies() && !head_->last.bias.defined() &&
                     weight.size(0) % kernels::kCrossEntropyVector == 0;
  if (plain && fused(rows)) return fused_loss(rows, weight, targets, factor, config_.vocab);
  return loss_sum(rows, targets) * factor;
}

std::vector<Model::LayerUsage> Model::expert_usage() const {
  std::vector<LayerUsage> out;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const ExpertUsage* usage = blocks_[i].usage();
    if (usage != nullptr) out.push_back({static_cast<std::int64_t>(i), usage});
  }
  return out;
}

std::vector<ExpertChoices> Model::expert_choices(const Input& input) const {
  const at::NoGradGuard no_gradient;
  PassContext pass = pass_for(input, config_.image ? config_.tokens() : input.tokens.size(1));
  std::vector<ExpertChoices> out;
  pass.choices = &out;
  through_blocks(input, {}, /*training=*/false, nullptr, pass);
  return out;
}

void Model::after_step() {
  const at::NoGradGuard no_gradient;
  for (Block& block : blocks_) block.after_step();
}

}  // namespace subspace::nn
