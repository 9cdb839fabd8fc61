#include "nn/adapter.h"

#include <algorithm>
#include <cmath>

#include "base/atomic_file.h"
#include "base/error.h"
#include "nn/config_fields.h"
#include "nn/model.h"

namespace subspace::nn {

double AdapterConfig::scale() const {
  const auto r = static_cast<double>(rank);
  return alpha / (rslora ? std::sqrt(r) : r);
}

bool AdapterConfig::targets(const std::string& name) const {
  const std::string last = name.substr(name.rfind('.') + 1);
  return std::ranges::find(modules, last) != modules.end();
}

AdapterConfig read_adapter_config(const Json& json, const std::string& where) {
  ConfigFields in(json, where + ": adapter");
  AdapterConfig out;
  out.rank = in.positive("r");
  out.alpha = in.not_negative_or("lora_alpha", static_cast<double>(out.rank));
  out.rslora = in.boolean_or("use_rslora", false);
  in.known({"target_modules"});
  out.modules = in.fields().strings("target_modules");
  if (out.modules.empty()) in.contradiction("target_modules", "expected a matrix at least");
  in.finish_object("an adapter", "docs/training.md");
  return out;
}

void require_targets(const Model& model, const AdapterConfig& config) {
  for (const std::string& module : config.modules) {
    const std::string end = "." + module + ".lora_A.weight";
    const bool found = std::ranges::any_of(model.parameters().all(), [&](const Parameter& one) {
      return one.adapter && one.name().ends_with(end);
    });
    if (found) continue;
    fail(ErrorCode::InvalidValue,
         "target_modules: no matrix of the model is called '{}'; decoders have q_proj, k_proj, "
         "v_proj, o_proj, gate_proj, up_proj, down_proj",
         module);
  }
}

void save_adapter(const Model& model, const AdapterConfig& config, const std::string& base,
                  const std::filesystem::path& folder) {
  require_targets(model, config);
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const Parameter& parameter : model.parameters().all()) {
    if (parameter.adapter) tensors.emplace_back(parameter.name(), parameter.value);
  }
  create_folder(folder);
  write_tensors(folder / "adapter_model.safetensors", tensors);
  const Json json = {{"peft_type", "LORA"},
                     {"task_type", "CAUSAL_LM"},
                     {"base_model_name_or_path", base},
                     {"r", config.rank},
                     {"lora_alpha", config.alpha},
                     {"use_rslora", config.rslora},
                     {"target_modules", config.modules},
                     {"lora_dropout", 0.0},
                     {"bias", "none"},
                     {"fan_in_fan_out", false},
                     {"init_lora_weights", true},
                     {"modules_to_save", nullptr},
                     {"rank_pattern", Json::object()},
                     {"alpha_pattern", Json::object()},
                     {"inference_mode", true}};
  write_file_atomically(folder / "adapter_config.json", json.dump(2) + "\n");
}

}  // namespace subspace::nn
