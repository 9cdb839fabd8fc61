#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"

namespace subspace::nn {

class Model;

/// A LoRA adapter that is trained here: W' = W + scale B A on every matrix whose name ends with one
/// of the targets, W frozen (Hu et al. 2021). Fields and files are PEFT's.
struct AdapterConfig {
  std::int64_t rank = 0;
  double alpha = 0;
  bool rslora = false;               ///< scale alpha / sqrt(r) instead of alpha / r
  std::vector<std::string> modules;  ///< "q_proj", ..: the last part of a matrix's name

  double scale() const;
  bool targets(const std::string& name) const;
};

/// What an adapter adds to the rows of one matrix; a undefined: nothing.
struct LowRankRows {
  at::Tensor a, b;  ///< [r, in], [out, r]
  double scale = 1;
};

/// The object `adapter` of a configuration: r, lora_alpha (r), use_rslora (false), target_modules.
/// Throws NotFound, InvalidValue naming the field (unknown ones with the nearest known one).
AdapterConfig read_adapter_config(const Json& json, const std::string& where);

/// Throws InvalidValue, naming it, for a target that no matrix of the model has as its name.
void require_targets(const Model& model, const AdapterConfig& config);

/// adapter_config.json and adapter_model.safetensors in `folder`, as PEFT writes them. Throws as
/// require_targets.
void save_adapter(const Model& model, const AdapterConfig& config, const std::string& base,
                  const std::filesystem::path& folder);

}  // namespace subspace::nn
