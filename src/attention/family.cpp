#include "attention/family.h"

#include <fmt/ranges.h>

#include <map>

#include "attention/family_base.h"

namespace subspace {
namespace {

/// model_type of config.json -> who reads it.
const std::map<std::string, Factory>& registry() {
  static const std::map<std::string, Factory> families = {
      {"bert", make_bert},
      {"roberta", make_bert},
      {"distilbert", make_distilbert},
      {"gpt2", make_gpt2},
      {"vit", make_vit},
      {"llama", make_llama},
      {"mistral", make_llama},
      {"qwen2", make_llama},
      {"qwen3", make_llama},
      {"gemma", make_gemma},
      {"gemma2", make_gemma},
      {"gemma3_text", make_gemma},
      {"deepseek_v2", make_deepseek},
      {"deepseek_v3", make_deepseek},
      {"kimi_k2", make_deepseek},
  };
  return families;
}

}  // namespace

std::vector<std::string> known_model_types() {
  std::vector<std::string> names;
  for (const auto& [name, factory] : registry()) names.push_back(name);
  return names;
}

std::unique_ptr<Family> open_family(const Checkpoint& checkpoint) {
  const std::string where = (checkpoint.folder() / "config.json").string();
  const Fields config(checkpoint.config(), where);
  const std::string model_type = config.string("model_type");
  const auto found = registry().find(model_type);
  if (found == registry().end()) {
    fail(
        ErrorCode::Unsupported,
        "{}: model_type '{}' is not known here; known are {}. docs/adding-a-family.md shows how to "
        "add one",
        where, model_type, fmt::join(known_model_types(), ", "));
  }
  return found->second({checkpoint, config, "", model_type});
}

FamilyBase::FamilyBase(Context context, const char* family) : context_(std::move(context)) {
  shape_.family = family;
  shape_.model_type = context_.model_type;
}

void FamilyBase::read_usual_shape() {
  shape_.layers = config().positive_int("num_hidden_layers");
  shape_.hidden_size = config().positive_int("hidden_size");
  shape_.heads = config().positive_int("num_attention_heads");
  shape_.kv_groups = config().positive_int_or("num_key_value_heads", shape_.heads);
  if (shape_.heads % shape_.kv_groups != 0) {
    fail(ErrorCode::InvalidValue,
         "{}: num_attention_heads {} is not a multiple of num_key_value_heads {}", config().where(),
         shape_.heads, shape_.kv_groups);
  }
  shape_.attention = shape_.kv_groups == shape_.heads ? "MHA"
                     : shape_.kv_groups == 1          ? "MQA"
                                                      : "GQA";
}

std::string FamilyBase::decoder_prefix() const {
  const bool bare = checkpoint().has(prefix() + "layers.0.input_layernorm.weight");
  return prefix() + (bare ? "" : "model.");
}

void FamilyBase::check_layer(std::int64_t layer) const {
  const std::int64_t all = shape_.layers + shape_.extra_layers;
  if (layer < 0 || layer >= all) {
    fail(ErrorCode::InvalidValue, "{}: layer {} is out of range; the model has layers 0 to {}",
         checkpoint().folder().string(), layer, all - 1);
  }
}

std::vector<Family::Needed> FamilyBase::needed(std::int64_t layer) const {
  check_layer(layer);
  ListingSource source(checkpoint());
  build(layer, source);
  return source.needed();
}

Rotary FamilyBase::rotary(std::int64_t layer) const {
  check_layer(layer);
  ListingSource source(checkpoint());
  return build(layer, source).rotary;
}

AttentionLayer FamilyBase::load(std::int64_t layer, int threads, bool allow_nonfinite,
                                const at::Device& device) const {
  check_layer(layer);
  LoadingSource source(checkpoint(), threads, allow_nonfinite, device);
  AttentionLayer built = build(layer, source);
  built.index = layer;
  return built;
}

std::int64_t AttentionLayer::heads() const { return q.size(0); }
std::int64_t AttentionLayer::groups() const { return k.size(0); }

}  // namespace subspace
