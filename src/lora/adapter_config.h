#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/pattern.h"

namespace subspace {

/// How a doubtful adapter is met.
struct AdapterOptions {
  /// Fields of adapter_config.json that this program does not know, and that are not null, false or
  /// empty, are refused instead of noted.
  bool strict = false;
  /// The base given is what is left of it after an initialisation that takes the first B A out of
  /// it (PiSSA, OLoRA, ...), or the adapter was converted: W + s B A is the trained model.
  bool base_is_residual = false;
};

/// adapter_config.json of a LoRA adapter as PEFT writes it, validated.
///
///   W' = W + s B A,   s = alpha / r, or alpha / sqrt(r) with rsLoRA
///
/// Rank and alpha of a module are those of the first key of rank_pattern (alpha_pattern) that
/// matches its path, in the order of the file, each looked up for itself; else r and lora_alpha. A
/// key matches as PEFT's re.match(r"(.*\.)?(KEY)$", path) does.
struct AdapterConfig {
  std::string where;
  std::string base_model, revision, peft_version, task_type;
  std::int64_t rank = 0;
  double alpha = 0;
  bool rslora = false, dora = false, lora_bias = false, fan_in_fan_out = false;
  std::string bias = "none";  ///< "none", "lora_only" or "all"
  std::string initialisation;
  std::vector<std::string> target_modules, modules_to_save;
  std::vector<std::pair<Pattern, std::int64_t>> ranks;
  std::vector<std::pair<Pattern, double>> alphas;
  std::vector<std::string> notes;  ///< in words, for whoever reads the results

  std::int64_t rank_of(std::string_view path) const;
  double alpha_of(std::string_view path) const;
  /// s for a module of that path whose A has `rank` rows.
  double scale_of(std::string_view path, std::int64_t rank) const;
};

/// Throws NotFound / InvalidValue for a field that is missing or wrong, Unsupported (with the
/// reason) for what cannot be analysed as W + s B A: another peft_type, LoRA variants (aLoRA,
/// QALoRA, BD-LoRA, Arrow, MonteCLoRA, VeLoRA, KaSA), layer_replication, parameters of attention as
/// targets, DoRA with lora_bias, an initialisation that changes the base (unless
/// base_is_residual), and with `strict` any field not known here.
AdapterConfig parse_adapter_config(const Json& json, const std::string& where,
                                   const AdapterOptions& options);

/// What a tensor of an adapter's file is.
struct AdapterKey {
  enum class Part { a, b, b_bias, magnitude, embedding, whole, ignored };
  Part part = Part::whole;
  std::string path;     ///< of the module inside the base, without base_model.model.
  std::string leaf;     ///< of a tensor saved whole: "weight", "bias"
  std::string adapter;  ///< its name, in a dump of a model in memory (lora_A.default.weight)
};

/// Reads a key as PEFT writes it to a file, or as a model in memory has it. Throws InvalidFormat
/// for a key with lora_... of which nothing is known.
AdapterKey parse_adapter_key(const std::string& key, const std::string& where);

/// A module's path, or a tensor's name, in the one spelling under which paths inside a model in
/// memory and names in its released files are compared: what wraps a language model is left out
/// (model., transformer., bert., language_model., ...), and modules that transformers and the files
/// call differently (ViT, DeepSeek-V4) have transformers' names.
std::string canonical_path(std::string_view path);

/// The N of "layers.N." or "h.N." in a canonical path, or -1.
std::int64_t layer_in_path(std::string_view canonical);

}  // namespace subspace
