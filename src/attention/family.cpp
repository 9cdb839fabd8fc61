#include "attention/family.h"

#include <fmt/ranges.h>

#include <algorithm>
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
      {"deepseek_v32", make_deepseek},
      {"deepseek_v4", make_deepseek_v4},
      {"glm4_moe_lite", make_deepseek},
      {"glm_moe_dsa", make_deepseek},
      {"kimi_k2", make_deepseek},
      {"longcat_flash", make_deepseek},
      {"minicpm3", make_deepseek},
      {"ministral3", make_llama},
      {"mistral4", make_deepseek},
      {"subspace_decoder", make_subspace},
      {"subspace_encoder", make_subspace},
      {"subspace_vit", make_subspace},
  };
  return families;
}

/// Models that wrap a language model (text_config): their model_type -> that of a text_config which
/// does not say its own.
const std::map<std::string, std::string>& wrappers() {
  static const std::map<std::string, std::string> types = {
      {"gemma3", "gemma3_text"},
      {"kimi_k25", "deepseek_v3"},
      {"mistral3", "mistral"},
  };
  return types;
}

/// What stands in front of a wrapped language model's tensors: transformers' naming, or that of the
/// released files ("language_model.model.layers...").
std::string language_model_prefix(const Checkpoint& checkpoint) {
  const std::string inside = "model.language_model.";
  const auto& names = checkpoint.names();
  const auto found = std::lower_bound(names.begin(), names.end(), inside);
  return found != names.end() && found->starts_with(inside) ? inside : "language_model.";
}

}  // namespace

std::vector<std::string> known_model_types() {
  std::vector<std::string> names;
  for (const auto& [name, factory] : registry()) names.push_back(name);
  for (const auto& [name, text] : wrappers()) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

std::unique_ptr<Family> open_family(const Checkpoint& checkpoint) {
  const std::string where = (checkpoint.folder() / "config.json").string();
  Fields config(checkpoint.config(), where);
  std::string model_type = config.string("model_type"), prefix, wrapper;
  if (const auto wrapped = wrappers().find(model_type); wrapped != wrappers().end()) {
    wrapper = model_type;
    config = config.object("text_config");
    model_type = config.string_or("model_type", wrapped->second);
    prefix = language_model_prefix(checkpoint);
  }
  const auto found = registry().find(model_type);
  if (found == registry().end()) {
    fail(
        ErrorCode::Unsupported,
        "{}: model_type '{}' is not known here; known are {}. docs/adding-a-family.md shows how to "
        "add one",
        config.where(), model_type, fmt::join(known_model_types(), ", "));
  }
  return found->second({checkpoint, config, prefix, model_type, wrapper});
}

FamilyBase::FamilyBase(Context context, const char* family) : context_(std::move(context)) {
  shape_.family = family;
  shape_.model_type = context_.wrapper.empty() ? context_.model_type : context_.wrapper;
  if (!context_.wrapper.empty()) {
    shape_.notes.push_back(
        fmt::format("the language model ({}) of a {}; nothing else of it is read",
                    context_.model_type, context_.wrapper));
  }
}

void FamilyBase::read_usual_shape(const Defaults& defaults, const char* layers) {
  shape_.layers = config().positive_int(layers);
  shape_.hidden_size = config().positive_int("hidden_size");
  shape_.heads = defaults.heads > 0
                     ? config().positive_int_or("num_attention_heads", defaults.heads)
                     : config().positive_int("num_attention_heads");
  shape_.kv_groups = config().positive_int_or("num_key_value_heads",
                                              defaults.groups > 0 ? defaults.groups : shape_.heads);
  if (shape_.heads % shape_.kv_groups != 0) {
    fail(ErrorCode::InvalidValue,
         "{}: num_attention_heads {} is not a multiple of num_key_value_heads {}", config().where(),
         shape_.heads, shape_.kv_groups);
  }
  shape_.attention = shape_.kv_groups == shape_.heads ? "MHA"
                     : shape_.kv_groups == 1          ? "MQA"
                                                      : "GQA";
}

std::string FamilyBase::decoder_prefix(const char* first) const {
  const bool bare = checkpoint().has(prefix() + "layers.0." + first);
  return prefix() + (bare ? "" : "model.");
}

void FamilyBase::require_whole_heads(const RopeConfig& rope) const {
  if (rope.partial_rotary_factor == 1) return;
  fail(ErrorCode::Unsupported,
       "{}: partial_rotary_factor is {}, but a {} rotates whole heads; expected 1 or no such field",
       config().where(), rope.partial_rotary_factor, model_type());
}

void FamilyBase::note_query_scaling(const RopeConfig& rope) {
  if (!rope.scaling) return;
  const Fields scaling(*rope.scaling, config().where() + ": rope parameters");
  if (!scaling.has("llama_4_scaling_beta")) return;
  shape_.notes.push_back(fmt::format(
      "queries grow with their position beyond the trained length, by 1 + {} ln(1 + floor(position "
      "/ {})); the maps are those within it",
      scaling.number("llama_4_scaling_beta"), scaling.number("original_max_position_embeddings")));
}

void FamilyBase::find_extra_layers(const std::function<std::string(std::int64_t layer)>& first) {
  while (checkpoint().has(first(shape_.layers + shape_.extra_layers))) ++shape_.extra_layers;
  const std::int64_t declared =
      config().has("num_nextn_predict_layers")
          ? config().int_in("num_nextn_predict_layers", 0, std::int64_t{1} << 20)
          : 0;
  if (shape_.extra_layers > 0) {
    shape_.notes.push_back(fmt::format(
        "{} multi-token-prediction layer(s) behind layer {}, analysed on request (--layers {})",
        shape_.extra_layers, shape_.layers - 1, shape_.layers));
  } else if (declared > 0) {
    shape_.notes.push_back(fmt::format(
        "config.json names {} multi-token-prediction layer(s); the checkpoint has none", declared));
  }
}

void FamilyBase::check_layer(std::int64_t layer) const {
  const std::int64_t all = shape_.layers + shape_.extra_layers;
  if (layer < 0 || layer >= all) {
    fail(ErrorCode::InvalidValue, "{}: layer {} is out of range; the model has layers 0 to {}",
         checkpoint().folder().string(), layer, all - 1);
  }
}

std::vector<Family::Needed> FamilyBase::needed(std::int64_t layer) const {
  ListingSource source(checkpoint());
  assemble(layer, source);
  return source.needed();
}

AttentionLayer FamilyBase::assemble(std::int64_t layer, TensorSource& source) const {
  check_layer(layer);
  AttentionLayer built = build(layer, source);
  built.index = layer;
  return built;
}

Rotary FamilyBase::rotary(std::int64_t layer) const {
  ListingSource source(checkpoint());
  return assemble(layer, source).rotary;
}

AttentionLayer FamilyBase::load(std::int64_t layer, int threads, bool allow_nonfinite,
                                const at::Device& device) const {
  LoadingSource source(checkpoint(), threads, allow_nonfinite, device);
  return assemble(layer, source);
}

std::int64_t AttentionLayer::heads() const { return q.size(0); }
std::int64_t AttentionLayer::groups() const { return k.size(0); }

}  // namespace subspace
