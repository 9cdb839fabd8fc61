#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cstdio>

#include "base/error.h"
#include "cli/commands.h"
#include "nn/model.h"

namespace subspace {
namespace {

struct ForwardArguments {
  std::string model, input, out, dtype = "float32";
  bool hidden = false;
};

/// The tensors of an input file, moved to the device. Any other name is an error: a misspelt mask
/// would be no mask.
nn::Input read_input(const std::string& path, const nn::ModelConfig& config, at::Device device,
                     at::ScalarType dtype) {
  const SafetensorsFile file(path);
  nn::Input input;
  const std::map<std::string, at::Tensor*> known =
      config.image ? std::map<std::string, at::Tensor*>{{"pixel_values", &input.pixels}}
                   : std::map<std::string, at::Tensor*>{{"input_ids", &input.tokens},
                                                        {"segment_ids", &input.segments},
                                                        {"position_ids", &input.positions},
                                                        {"token_type_ids", &input.token_types}};
  for (const auto& [name, info] : file.header().tensors) {
    const auto found = known.find(name);
    if (found == known.end()) {
      std::string names;
      for (const auto& [other, tensor] : known) names += (names.empty() ? "" : ", ") + other;
      fail(ErrorCode::InvalidValue, "{}: tensor '{}' is no input of this model; it reads {}", path,
           name, names);
    }
    const at::Tensor tensor = nn::read_tensor(file, name).to(device);
    *found->second = config.image ? tensor.to(dtype) : tensor.to(at::kLong);
  }
  const char* needed = config.image ? "pixel_values" : "input_ids";
  if (!known.at(needed)->defined()) {
    fail(ErrorCode::NotFound, "{}: no tensor '{}'", path, needed);
  }
  if (config.image) return input;
  if (input.tokens.dim() != 2) {
    fail(ErrorCode::InvalidShape, "{}: input_ids has shape {}; expected [rows, tokens]", path,
         shape_text({input.tokens.sizes().data(), input.tokens.sizes().size()}));
  }
  for (const auto& [name, tensor] : known) {
    if (!tensor->defined()) continue;
    const std::int64_t end = name == "input_ids"        ? config.vocab
                             : name == "position_ids"   ? config.positions
                             : name == "token_type_ids" ? config.token_types
                                                        : INT64_MAX;
    if (tensor->sizes() != input.tokens.sizes()) {
      fail(ErrorCode::InvalidShape, "{}: {} and input_ids differ in shape", path, name);
    }
    if (tensor->numel() > 0 &&
        (tensor->min().item<std::int64_t>() < 0 || tensor->max().item<std::int64_t>() >= end)) {
      fail(ErrorCode::InvalidValue, "{}: {} holds values from {} to {}; expected 0 to {}", path,
           name, tensor->min().item<std::int64_t>(), tensor->max().item<std::int64_t>(), end - 1);
    }
  }
  return input;
}

void forward(const ForwardArguments& arguments, const GlobalOptions& globals) {
  const int threads = chosen_threads(globals);
  nn::Model::Options options;
  options.device = chosen_device(globals);
  options.dtype = arguments.dtype == "float64"    ? at::kDouble
                  : arguments.dtype == "bfloat16" ? at::kBFloat16
                                                  : at::kFloat;
  const auto model = nn::load_model(resolve_model(arguments.model), options, threads);
  const nn::Input input =
      read_input(arguments.input, model->config(), options.device, options.dtype);
  const at::NoGradGuard no_gradient;
  const at::Tensor hidden = model->hidden(input);
  const at::Tensor logits = model->logits(hidden);
  std::vector<std::pair<std::string, at::Tensor>> out = {{"logits", logits}};
  if (arguments.hidden) out.emplace_back("hidden", hidden);
  nn::write_tensors(arguments.out, out);
  std::printf("%s\n",
              globals.json
                  ? Json({{"out", arguments.out}, {"logits", logits.sizes().vec()}}).dump().c_str()
                  : arguments.out.c_str());
}

}  // namespace

void add_forward(CLI::App& app, const GlobalOptions& globals) {
  auto arguments = std::make_shared<ForwardArguments>();
  CLI::App* command = app.add_subcommand(
      "forward",
      "A model's logits for given tokens or images, one safetensors file in, one out.\n"
      "FILE holds input_ids [rows, tokens] (and segment_ids, position_ids, token_type_ids, if\n"
      "they matter), or pixel_values [images, channels, size, size]; OUT gets logits.");
  command->add_option("model", arguments->model, "MODEL (see subspace --help)")->required();
  command->add_option("--input", arguments->input, "safetensors file to read")->required();
  command->add_option("--out", arguments->out, "safetensors file to write")->required();
  command->add_option("--dtype", arguments->dtype, "weights and arithmetic")
      ->check(CLI::IsMember({"float32", "float64", "bfloat16"}));
  command->add_flag("--hidden", arguments->hidden, "the vectors that the head reads as well");
  command->callback([arguments, &globals] { forward(*arguments, globals); });
}

}  // namespace subspace
