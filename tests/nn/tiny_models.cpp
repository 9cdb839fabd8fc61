#include "nn/tiny_models.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "base/random.h"

namespace subspace::nn::testing {
namespace {

constexpr const char* kText =
    R"({"vocab_size": 21, "hidden_size": 16, "intermediate_size": 10, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 9})";
constexpr const char* kImage =
    R"({"hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 6, "patch_size": 3, "num_channels": 2,
        "num_labels": 5})";

constexpr const char* kLatent =
    R"("q_lora_rank": 7, "kv_lora_rank": 6, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2,
       "v_head_dim": 5)";
constexpr const char* kExperts =
    R"("n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 1,
       "moe_intermediate_size": 4, "first_k_dense_replace": 1)";

constexpr const char* kNeurons =
    R"("head_dim": 4, "num_experts": 25, "num_expert_heads": 2, "num_experts_per_head": 3,
       "query_dim": 6)";

std::string with(const char* fields, const std::string& more = "") {
  return std::string("{") + fields + (more.empty() ? "" : ", " + more) + "}";
}

}  // namespace

Json tiny_config(const std::string& model_type, const std::string& more) {
  const bool image = model_type.ends_with("vit");
  Json config = Json::parse(image ? kImage : kText);
  config["model_type"] = model_type;
  const Json changes = Json::parse(more);
  for (const auto& [name, value] : changes.items()) {
    config[name] = value;
    if (value.is_null()) config.erase(name);
  }
  return config;
}

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {
      {"llama_gqa", "llama", R"({"num_key_value_heads": 2, "head_dim": 4})"},
      {"llama_biases_tied", "llama",
       R"({"head_dim": 4, "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true})"},
      {"deepseek", "deepseek_v3", with(kLatent, R"("first_k_dense_replace": 2)")},
      {"deepseek_moe", "deepseek_v3", with(kLatent, std::string(kExperts) + R"(, "n_group": 2,
           "topk_group": 1, "router_aux_loss_coef": 0.5)")},
      {"bert", "bert", "{}"},
      {"bert_classifier", "bert",
       R"({"architectures": ["BertForSequenceClassification"], "num_labels": 5})"},
      {"encoder_classifier", "subspace_encoder",
       R"({"architectures": ["SubspaceEncoderForSequenceClassification"], "num_labels": 5,
           "head_dim": 4, "o_lora_rank": 5})"},
      {"vit", "vit", "{}"},
      {"encoder_mha", "subspace_encoder", R"({"head_dim": 6, "qk_rope_head_dim": 4})"},
      {"encoder_mqa_o", "subspace_encoder",
       R"({"head_dim": 4, "num_key_value_heads": 1, "o_lora_rank": 5, "hidden_act": "gelu"})"},
      {"encoder_mla", "subspace_encoder", with(kLatent, R"("mlp_bias": true)")},
      {"encoder_mla_own_keys", "subspace_encoder",
       with(kLatent, R"("qk_rope_keys": "per_head", "o_lora_rank": 5)")},
      {"encoder_positions", "subspace_encoder", R"({"position_embedding_type": "absolute"})"},
      {"decoder_mla_o", "subspace_decoder", with(kLatent, R"("o_lora_rank": 5)")},
      {"decoder_mla_o_groups", "subspace_decoder",
       with(kLatent, R"("o_lora_rank": 5, "o_groups": 2)")},
      {"decoder_mla_o_rms", "subspace_decoder",
       with(kLatent, R"("o_lora_rank": 5, "o_latent_norm": "rms")")},
      {"decoder_mla_o_rms_groups", "subspace_decoder",
       with(kLatent, R"("o_lora_rank": 5, "o_groups": 2, "o_latent_norm": "rms")")},
      {"decoder_mla_o_heads", "subspace_decoder",
       with(kLatent, R"("o_lora_rank": 5, "o_groups": 2, "o_latent_norm": "rms_per_head",
                        "tie_word_embeddings": false)")},
      {"decoder_mla_rotated", "subspace_decoder",
       with(R"("kv_lora_rank": 6, "qk_rope_head_dim": 4, "v_head_dim": 5)")},
      {"decoder_moe_softmax", "subspace_decoder",
       with(kExperts, R"("head_dim": 4, "scoring_func": "softmax", "num_experts_per_tok": 3,
                         "router_aux_loss_coef": 0.5)")},
      {"decoder_ethos", "subspace_decoder",
       with(kNeurons, std::string(kLatent) + R"(, "head_dim": null, "feed_forward": "ethos",
            "expert_latent_dim": 5, "expert_hidden_dim": 32, "first_k_dense_replace": 1)")},
      {"decoder_peer", "subspace_decoder",
       with(kNeurons, R"("feed_forward": "peer", "hidden_size": 32, "intermediate_size": null)")},
      {"encoder_molae", "subspace_encoder",
       with(kNeurons, R"("feed_forward": "molae", "expert_latent_dim": 32, "query_norm": "none",
            "first_k_dense_replace": 1)")},
      {"vit_mla_o", "subspace_vit",
       R"({"kv_lora_rank": 6, "q_lora_rank": 7, "qk_nope_head_dim": 3, "v_head_dim": 5,
           "o_lora_rank": 5})"},
  };
  return all;
}

std::unique_ptr<Model> tiny_model(const Json& config) {
  Model::Options options;
  options.dtype = at::kDouble;
  auto model = std::make_unique<Model>(read_model_config(config, "config.json"), options);
  const at::NoGradGuard no_gradient;
  Random random(3);
  for (const Parameter& parameter : model->parameters().all()) {
    at::Tensor noise = at::empty(parameter.value.sizes(), at::kDouble);
    auto* values = noise.data_ptr<double>();
    for (std::int64_t i = 0; i < noise.numel(); ++i) values[i] = 0.3 * random.normal();
    const Parameter::Part& last = parameter.parts.back();
    parameter.value.narrow(0, 0, last.begin + last.rows)
        .add_(noise.narrow(0, 0, last.begin + last.rows));
  }
  return model;
}

Input tiny_input(const ModelConfig& config) {
  Random random(5);
  Input input;
  if (config.image) {
    const ImageConfig& image = *config.image;
    input.pixels = at::empty({3, image.channels, image.size, image.size}, at::kDouble);
    auto* values = input.pixels.data_ptr<double>();
    for (std::int64_t i = 0; i < input.pixels.numel(); ++i) values[i] = random.normal();
    return input;
  }
  input.tokens = at::empty({3, 8}, at::kLong);
  auto* values = input.tokens.data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < input.tokens.numel(); ++i) {
    values[i] = static_cast<std::int64_t>(random.word()) % config.vocab;
  }
  return input;
}

at::Tensor tiny_loss(const Model& model, const Input& input) {
  at::Tensor auxiliary;
  at::Tensor hidden = model.hidden(input, /*training=*/true, &auxiliary);
  const bool first = model.config().classifies();
  at::Tensor rows = first ? hidden.select(1, 0) : hidden.flatten(0, 1);
  at::Tensor targets = at::arange(rows.size(0), at::kLong).remainder(5);
  if (!first) targets[3] = -100;
  at::Tensor loss = model.loss_sum(rows, targets);
  return auxiliary.defined() ? loss + auxiliary : loss;
}

}  // namespace subspace::nn::testing
