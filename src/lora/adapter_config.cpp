#include "lora/adapter_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"

namespace subspace {
namespace {

constexpr std::int64_t kMaxRank = 1 << 20;

/// null, false, 0, "", [] and {} say nothing.
bool says_something(const Json& value) {
  if (value.is_null()) return false;
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value.get<double>() != 0;
  if (value.is_string()) return !value.get_ref<const std::string&>().empty();
  return !value.empty();
}

bool truthy(const Fields& fields, const char* name) {
  return fields.has(name) && says_something(fields.json().at(name));
}

/// Variants whose change of W is not s B A, or not everywhere.
constexpr std::pair<const char*, const char*> kRefused[] = {
    {"alora_invocation_tokens",
     "an activated LoRA (aLoRA) changes only what comes after its invocation tokens, so there is "
     "no one changed matrix"},
    {"use_qalora", "QALoRA pools the input of A by groups, so its change of W is not B A"},
    {"use_bdlora", "BD-LoRA's factors are block-diagonal, stored in a layout of their own"},
    {"arrow_config", "Arrow routes every token among several adapters"},
    {"monteclora_config", "MonteCLoRA's factors are random variables"},
    {"velora_config", "VeLoRA has a form of its own"},
    {"kasa_config", "KaSA has singular values between B and A and cuts the base's"},
    {"layer_replication",
     "layers of the base are repeated, so that the adapter's layer numbers are not the base's; "
     "save the widened model and adapt that"},
};

/// Fields that change nothing of W + s B A, or are read above. qalora_group_size and megatron_core
/// always say something.
const std::set<std::string>& known_fields() {
  static const std::set<std::string> names = {"alpha_pattern",
                                              "alora_invocation_tokens",
                                              "arrow_config",
                                              "auto_mapping",
                                              "base_model_name_or_path",
                                              "bias",
                                              "corda_config",
                                              "ensure_weight_tying",
                                              "eva_config",
                                              "exclude_modules",
                                              "fan_in_fan_out",
                                              "inference_mode",
                                              "init_lora_weights",
                                              "kasa_config",
                                              "layer_replication",
                                              "layers_pattern",
                                              "layers_to_transform",
                                              "loftq_config",
                                              "lora_alpha",
                                              "lora_bias",
                                              "lora_dropout",
                                              "lora_ga_config",
                                              "megatron_config",
                                              "megatron_core",
                                              "modules_to_save",
                                              "monteclora_config",
                                              "peft_type",
                                              "peft_version",
                                              "qalora_group_size",
                                              "r",
                                              "rank_pattern",
                                              "revision",
                                              "runtime_config",
                                              "target_modules",
                                              "target_parameters",
                                              "task_type",
                                              "trainable_token_indices",
                                              "use_bdlora",
                                              "use_dora",
                                              "use_qalora",
                                              "use_rslora",
                                              "velora_config"};
  return names;
}

void refuse_variants(const Fields& fields) {
  for (const auto& [name, reason] : kRefused) {
    if (!truthy(fields, name)) continue;
    fail(ErrorCode::Unsupported, "{}: '{}' is set: {}; this program reads LoRA, rsLoRA and DoRA",
         fields.where(), name, reason);
  }
  if (!truthy(fields, "target_parameters")) return;
  for (const std::string& name : fields.strings("target_parameters")) {
    if (name.find("attn") == std::string::npos && name.find("attention") == std::string::npos) {
      continue;
    }
    fail(ErrorCode::Unsupported,
         "{}: target_parameters names '{}', a parameter of attention; only modules "
         "(target_modules) are read",
         fields.where(), name.substr(0, 200));
  }
}

/// Initialisations that begin by taking B A out of the base's weights.
bool changes_base(const std::string& initialisation) {
  for (const char* kind : {"pissa", "olora", "corda", "loftq", "lora_ga"}) {
    if (initialisation.starts_with(kind)) return true;
  }
  return false;
}

std::string read_initialisation(const Fields& fields, const AdapterOptions& options) {
  const std::string name = "init_lora_weights";
  if (!fields.has(name) || fields.json().at(name).is_boolean()) return "";
  const std::string kind = fields.string(name);
  std::string lower = kind;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (changes_base(lower) && !options.base_is_residual) {
    fail(ErrorCode::Unsupported,
         "{}: init_lora_weights is '{}': training began by taking B A out of the base's weights, "
         "so the base as published with this adapter is not the trained model. Convert the adapter "
         "(PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)), or give the "
         "residual base and say --base-is-residual",
         fields.where(), kind.substr(0, 80));
  }
  return lower;
}

void read_patterns(const Fields& fields, AdapterConfig& config) {
  if (const auto ranks = fields.object_if("rank_pattern")) {
    for (const auto& [key, value] : ranks->json().items()) {
      config.ranks.emplace_back(Pattern(key, ranks->where()), ranks->int_in(key, 1, kMaxRank));
    }
  }
  if (const auto alphas = fields.object_if("alpha_pattern")) {
    for (const auto& [key, value] : alphas->json().items()) {
      config.alphas.emplace_back(Pattern(key, alphas->where()), alphas->number(key));
    }
  }
}

std::vector<std::string> one_or_more(const Fields& fields, const char* name) {
  if (!fields.has(name)) return {};
  if (fields.json().at(name).is_string()) return {fields.string(name)};
  return fields.strings(name);
}

void note_the_rest(const Fields& fields, const AdapterOptions& options, AdapterConfig& config) {
  std::vector<std::string> unknown;
  for (const auto& [name, value] : fields.json().items()) {
    if (!known_fields().contains(name) && says_something(value)) {
      unknown.push_back(name.substr(0, 80));
    }
  }
  if (!unknown.empty()) {
    const std::string list = fmt::format("{}", fmt::join(unknown, ", "));
    if (options.strict) {
      fail(ErrorCode::Unsupported,
           "{}: field(s) {} are set, and what they change is not known here; without --strict they "
           "are noted and passed over",
           fields.where(), list);
    }
    config.notes.push_back("adapter_config.json sets " + list +
                           ", which this program does not know and passes over");
  }
  if (truthy(fields, "trainable_token_indices")) {
    config.notes.push_back(
        "some tokens' embeddings are trained (trainable_token_indices); only "
        "attention is looked at");
  }
  if (truthy(fields, "target_parameters")) {
    config.notes.push_back(
        "parameters outside attention are adapted (target_parameters); they are "
        "left out");
  }
  if (config.bias != "none") {
    config.notes.push_back(fmt::format("biases are trained too (bias = \"{}\")", config.bias));
  }
  if (!config.initialisation.empty()) {
    config.notes.push_back(fmt::format("factors were initialised by '{}'", config.initialisation) +
                           (changes_base(config.initialisation)
                                ? "; the base is taken to be the residual (--base-is-residual)"
                                : ""));
  }
  if (config.base_model.find("4bit") != std::string::npos) {
    config.notes.push_back(
        "the base's name says 4-bit: the adapter was trained beside quantised weights, and terms "
        "with the base's 16-bit weights differ from those by the quantisation");
  }
}

}  // namespace

AdapterConfig parse_adapter_config(const Json& json, const std::string& where,
                                   const AdapterOptions& options) {
  const Fields fields(json, where);
  AdapterConfig config;
  config.where = where;
  const std::string type = fields.string("peft_type");
  if (type != "LORA") {
    fail(ErrorCode::Unsupported, "{}: peft_type is '{}'; expected LORA, the only one read here",
         where, type.substr(0, 80));
  }
  refuse_variants(fields);
  config.base_model = fields.string_or("base_model_name_or_path", "");
  config.revision = fields.string_or("revision", "");
  config.peft_version = fields.string_or("peft_version", "");
  config.task_type = fields.string_or("task_type", "");
  config.rank = fields.int_in("r", 1, kMaxRank);
  config.alpha = fields.number("lora_alpha");
  config.rslora = fields.boolean_or("use_rslora", false);
  config.dora = fields.boolean_or("use_dora", false);
  config.lora_bias = fields.boolean_or("lora_bias", false);
  config.fan_in_fan_out = fields.boolean_or("fan_in_fan_out", false);
  config.bias = fields.string_or("bias", "none");
  if (config.bias != "none" && config.bias != "lora_only" && config.bias != "all") {
    fail(ErrorCode::InvalidValue, "{}: field 'bias' is '{}'; expected none, lora_only or all",
         where, config.bias.substr(0, 80));
  }
  if (config.dora && config.lora_bias) {
    fail(ErrorCode::Unsupported, "{}: use_dora and lora_bias exclude each other", where);
  }
  config.initialisation = read_initialisation(fields, options);
  config.target_modules = one_or_more(fields, "target_modules");
  config.modules_to_save = one_or_more(fields, "modules_to_save");
  read_patterns(fields, config);
  note_the_rest(fields, options, config);
  return config;
}

namespace {

/// PEFT's re.match(r"(.*\.)?(KEY)$", path): KEY on the whole path or behind one of its dots.
bool key_matches(const Pattern& key, std::string_view path) {
  if (key.matches(path)) return true;
  for (std::size_t i = 0; i < path.size(); ++i) {
    if (path[i] == '.' && key.matches(path, i + 1)) return true;
  }
  return false;
}

template <typename Value>
Value first_match(const std::vector<std::pair<Pattern, Value>>& rules, std::string_view path,
                  Value otherwise) {
  for (const auto& [key, value] : rules) {
    if (key_matches(key, path)) return value;
  }
  return otherwise;
}

}  // namespace

std::int64_t AdapterConfig::rank_of(std::string_view path) const {
  return first_match(ranks, path, rank);
}

double AdapterConfig::alpha_of(std::string_view path) const {
  return first_match(alphas, path, alpha);
}

double AdapterConfig::scale_of(std::string_view path, std::int64_t r) const {
  const auto width = static_cast<double>(r);
  return alpha_of(path) / (rslora ? std::sqrt(width) : width);
}

}  // namespace subspace
