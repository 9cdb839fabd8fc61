#include <ATen/ATen.h>

#include <map>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/progress.h"
#include "nn/model.h"

namespace subspace::nn {
namespace {

const char* architecture(const ModelConfig& config) {
  if (config.labels > 0) {
    return config.model_type == "bert" ? "BertForSequenceClassification"
                                       : "SubspaceEncoderForSequenceClassification";
  }
  static const std::map<std::string, const char*> names = {
      {"bert", "BertForMaskedLM"},
      {"deepseek_v3", "DeepseekV3ForCausalLM"},
      {"llama", "LlamaForCausalLM"},
      {"subspace_decoder", "SubspaceDecoderForCausalLM"},
      {"subspace_encoder", "SubspaceEncoderForMaskedLM"},
      {"subspace_vit", "SubspaceViTForImageClassification"},
      {"vit", "ViTForImageClassification"},
  };
  return names.at(config.model_type);
}

const char* dtype_text(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return "float64";
    case at::kBFloat16:
      return "bfloat16";
    case at::kHalf:
      return "float16";
    default:
      return "float32";
  }
}

}  // namespace

std::unique_ptr<Model> load_model(const std::filesystem::path& folder,
                                  const Model::Options& options, int threads) {
  const Checkpoint checkpoint(folder);
  Model::Options empty = options;
  empty.fill = false;
  auto model = std::make_unique<Model>(
      read_model_config(checkpoint.config(), (folder / "config.json").string()), empty);
  const auto unused = model->parameters().load(checkpoint, threads);
  if (!unused.empty()) {
    message(fmt::format("{}: {} tensor(s) that this model does not use, '{}' first",
                        folder.string(), unused.size(), unused.front()));
  }
  return model;
}

void save_model(const Model& model, const std::filesystem::path& folder) {
  create_folder(folder);
  Json config = model.config().json;
  config["architectures"] = {architecture(model.config())};
  config.erase("torch_dtype");  // the older name of the same
  config["dtype"] = dtype_text(model.parameters().all().front().value.scalar_type());
  model.parameters().save(folder / "model.safetensors");
  write_file_atomically(folder / "config.json", config.dump(2) + "\n");
}

}  // namespace subspace::nn
