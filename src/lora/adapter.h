#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "lora/adapter_config.h"

namespace subspace {

/// The low-rank change of one module, as an adapter's file has it:
///
///   W' = W + s B A    W [out, in] (or its transpose, where a family stores that), A [r, in],
///                     B [out, r]
struct AdapterModule {
  std::string path;       ///< inside the base, as PEFT names it
  std::string a, b;       ///< keys of the tensors in the file
  std::string b_bias;     ///< [out] key, or empty (lora_bias)
  std::string magnitude;  ///< [out] key, or empty (DoRA)
  std::int64_t rank = 0, in = 0, out = 0;
  double alpha = 0, scale = 0;
};

/// A LoRA adapter as PEFT writes it: adapter_config.json and adapter_model.safetensors.
///
/// Opening reads the configuration and the header and checks one against the other: every module
/// has A and B, of one rank, which is the configuration's for that path (r, rank_pattern); biases
/// and magnitudes are there exactly where lora_bias and use_dora say so. Weights are read when
/// asked for, and checked then.
///
/// Throws what parse_adapter_config does; NotFound (folder, file, missing A or B, named),
/// InvalidShape / InvalidValue (key, found, expected), InvalidFormat (unknown lora_ tensor, an
/// empty adapter), Unsupported (adapter_model.bin, several adapters in one file).
class Adapter {
 public:
  explicit Adapter(const std::filesystem::path& folder, const AdapterOptions& options = {});

  const std::filesystem::path& folder() const { return folder_; }
  const AdapterConfig& config() const { return config_; }
  /// Adapted matrices, by canonical_path() of the module.
  const std::map<std::string, AdapterModule>& modules() const { return modules_; }
  /// Tensors saved whole (modules_to_save, trained biases), by canonical_path() of their names.
  const std::map<std::string, std::string>& whole() const { return whole_; }
  /// In words, for whoever reads the results; the configuration's among them.
  const std::vector<std::string>& notes() const { return notes_; }
  /// Numbers in the low-rank factors, biases and magnitudes, and in tensors saved whole.
  std::int64_t parameters() const { return parameters_; }
  std::int64_t whole_parameters() const { return whole_parameters_; }

  /// A tensor of the file, float64. Throws NotFinite (file, tensor, where), Unsupported (dtype).
  at::Tensor tensor(const std::string& key) const;
  const TensorInfo& info(const std::string& key) const { return file_.info(key); }

  /// A [r, in] and s B [out, r] of a module.
  at::Tensor a(const AdapterModule& module) const { return tensor(module.a); }
  at::Tensor b(const AdapterModule& module) const;

 private:
  void read_keys();
  void complete(AdapterModule& module) const;
  void check_one(const std::string& key, std::int64_t size, const AdapterModule& module) const;

  std::filesystem::path folder_;
  AdapterConfig config_;
  SafetensorsFile file_;
  std::map<std::string, AdapterModule> modules_;
  std::map<std::string, std::string> whole_;
  std::vector<std::string> notes_;
  std::int64_t parameters_ = 0, whole_parameters_ = 0;
};

/// Turns ADAPTER of the command line into a folder: one that holds adapter_config.json, or
/// org/name[@revision] in the Hugging Face cache. Throws NotFound saying what was looked for.
std::filesystem::path resolve_adapter(const std::string& adapter);

}  // namespace subspace
