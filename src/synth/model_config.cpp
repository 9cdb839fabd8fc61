#include "synth/model_config.h"

#include <fmt/ranges.h>

#include <set>

#include "base/error.h"
#include "embedded/model_configs.h"

namespace subspace {
namespace {

/// The language model's own fields, nested or not.
Json& text_config(Json& config) {
  return config.contains("text_config") && config["text_config"].is_object() ? config["text_config"]
                                                                             : config;
}
const Json& text_config(const Json& config) { return text_config(const_cast<Json&>(config)); }

const char* layers_field(const Json& config) {
  // LongCat's num_hidden_layers counts attentions, and may be absent.
  if (config.contains("num_layers")) return "num_layers";
  for (const char* field : {"num_hidden_layers", "n_layer", "n_layers"}) {
    if (config.contains(field)) return field;
  }
  fail(ErrorCode::InvalidValue,
       "the configuration has no number of layers (num_hidden_layers, n_layer or n_layers)");
}

/// An absent or null field is `absent`; anything but a boolean is left to the family to refuse.
bool flag(const Json& config, const char* field, bool absent) {
  const auto found = config.find(field);
  return found != config.end() && found->is_boolean() ? found->get<bool>() : absent;
}

struct Implied {
  std::set<std::string> model_types;
  bool (*when)(const Json& config);
  const char* prefix;  ///< {} is the layer
  std::vector<const char*> tensors;
};

const std::vector<Implied>& conventions() {
  static const auto always = [](const Json&) { return true; };
  static const auto biased = [](const Json& c) { return flag(c, "attention_bias", false); };
  static const std::vector<Implied> table = {
      {{"gpt2"}, always, "h.{}.attn.", {"c_attn.weight"}},
      {{"bert", "roberta"},
       always,
       "encoder.layer.{}.attention.",
       {"self.query.weight", "self.query.bias", "self.key.bias", "self.value.bias",
        "output.dense.bias"}},
      {{"distilbert"},
       always,
       "transformer.layer.{}.attention.",
       {"q_lin.weight", "q_lin.bias", "k_lin.bias", "v_lin.bias", "out_lin.bias"}},
      {{"vit"},
       always,
       "encoder.layer.{}.attention.",
       {"attention.query.weight", "output.dense.bias"}},
      {{"vit"},
       [](const Json& c) { return flag(c, "qkv_bias", true); },
       "encoder.layer.{}.attention.attention.",
       {"query.bias", "key.bias", "value.bias"}},
      {{"qwen2"},
       always,
       "model.layers.{}.self_attn.",
       {"q_proj.bias", "k_proj.bias", "v_proj.bias"}},
      {{"llama", "qwen3", "gemma", "gemma2", "gemma3_text"},
       biased,
       "model.layers.{}.self_attn.",
       {"q_proj.bias", "k_proj.bias", "v_proj.bias", "o_proj.bias"}},
      {{"qwen3", "gemma3_text"},
       always,
       "model.layers.{}.self_attn.",
       {"q_norm.weight", "k_norm.weight"}},
      {{"deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2",
        "minicpm3", "mistral4"},
       biased,
       "model.layers.{}.self_attn.",
       {"q_a_proj.bias", "kv_a_proj_with_mqa.bias", "o_proj.bias"}},
  };
  return table;
}

}  // namespace

std::vector<std::string> preset_names() {
  return {"bert-base", "deepseek-v2-lite", "deepseek-v3", "deepseek-v4-flash",
          "gpt2",      "kimi-k2",          "llama-3-8b",  "qwen3-8b"};
}

Json model_config(const std::string& name, std::optional<std::int64_t> layers) {
  Json config;
  if (name.ends_with(".json")) {
    config = read_json_file(name);
  } else {
    const std::string_view text = embedded::model_configs(name + ".json");
    if (text.empty()) {
      fail(ErrorCode::Usage, "'{}' is neither a preset ({}) nor the path of a config.json", name,
           fmt::join(preset_names(), ", "));
    }
    config = parse_json(text, name);
  }
  if (!config.is_object()) {
    fail(ErrorCode::InvalidFormat, "{}: expected a JSON object, a model's config.json", name);
  }
  Json& text = text_config(config);
  if (layers) {
    text[layers_field(text)] = *layers;
    const auto types = text.find("layer_types");
    if (types != text.end() && types->is_array()) {
      if (static_cast<std::int64_t>(types->size()) < *layers) {
        fail(ErrorCode::InvalidValue,
             "{}: layer_types names {} layers, --layers asks for {}; give at most as many", name,
             types->size(), *layers);
      }
      types->erase(types->begin() + *layers, types->end());
    }
  }
  // Multi-token-prediction layers are not made.
  if (text.contains("num_nextn_predict_layers")) text["num_nextn_predict_layers"] = 0;
  return config;
}

void describe_storage(Json& config, DType dtype) {
  config.erase("quantization_config");
  text_config(config).erase("quantization_config");
  config.erase("dtype");
  config["torch_dtype"] = dtype == DType::F32 ? "float32" : "bfloat16";
  if (dtype == DType::F8_E4M3) {
    config["quantization_config"] = {{"activation_scheme", "dynamic"},
                                     {"fmt", "e4m3"},
                                     {"quant_method", "fp8"},
                                     {"weight_block_size", {128, 128}}};
  }
}

std::vector<std::string> implied_names(const Json& config) {
  const Json& text = text_config(config);
  const Fields fields(text, "the configuration");
  const std::string model_type = fields.string("model_type");
  constexpr std::int64_t kMostLayers = 100000;
  const std::int64_t layers = fields.int_in(layers_field(text), 1, kMostLayers);
  const char* const inside = &text == &config ? "" : "language_model.";
  std::vector<std::string> names;
  for (const Implied& implied : conventions()) {
    if (!implied.model_types.contains(model_type) || !implied.when(text)) continue;
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      for (const char* tensor : implied.tensors) {
        names.push_back(inside + fmt::format(fmt::runtime(implied.prefix), layer) + tensor);
      }
    }
  }
  return names;
}

}  // namespace subspace
