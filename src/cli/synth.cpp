#include <fmt/ranges.h>

#include <cstdio>

#include "base/progress.h"
#include "cli/commands.h"
#include "synth/model_config.h"
#include "synth/synthesize.h"

namespace subspace {
namespace {

struct SynthArguments {
  std::string config, out, dtype = "bf16", spectrum = "gaussian";
  std::int64_t layers = 0;
  std::uint64_t seed = 0;
};

void synth(const SynthArguments& arguments, const GlobalOptions& globals) {
  SynthOptions options;
  std::optional<std::int64_t> layers;
  if (arguments.layers > 0) layers = arguments.layers;
  options.config = model_config(arguments.config, layers);
  options.config_name = arguments.config;
  options.out = arguments.out;
  options.dtype = arguments.dtype == "f32"   ? DType::F32
                  : arguments.dtype == "fp8" ? DType::F8_E4M3
                                             : DType::BF16;
  describe_storage(options.config, options.dtype);
  options.spectrum = SpectrumRule(arguments.spectrum);
  options.seed = arguments.seed;
  options.threads = chosen_threads(globals);
  const Json result = synthesize(options);
  if (globals.json) {
    std::printf("%s\n", result.dump().c_str());
    return;
  }
  std::printf("%s\n", arguments.out.c_str());
  message(fmt::format("{} layer(s) of {}, {} tensors, {} in {}; {}/expected.json says what to find",
                      result.at("layers").get<std::int64_t>(),
                      result.at("model_type").get<std::string>(),
                      result.at("tensors").get<std::int64_t>(),
                      format_bytes(result.at("bytes").get<std::uint64_t>()),
                      format_seconds(result.at("seconds").get<double>()), arguments.out));
}

}  // namespace

void add_synth(CLI::App& app, const GlobalOptions& globals) {
  auto arguments = std::make_shared<SynthArguments>();
  CLI::App* command = app.add_subcommand(
      "synth",
      fmt::format(
          "A checkpoint of a known family at its real shapes with random weights, for measuring "
          "and\ntesting: only what attention reads, so it is not a model that runs.\n\n"
          "  subspace synth deepseek-v3 --out v3 --layers 2 --dtype fp8\n"
          "  subspace synth llama-3-8b --out llama --layers 1 --spectrum rank:64\n\n"
          "Presets: {}.",
          fmt::join(preset_names(), ", ")));
  command->add_option("config", arguments->config, "a preset, or the path of a config.json")
      ->required();
  command->add_option("--out", arguments->out, "folder for the checkpoint; must hold no model")
      ->required();
  command
      ->add_option("--layers", arguments->layers, "number of layers (0: as the configuration says)")
      ->check(CLI::Range(0, 100000));
  command->add_option("--dtype", arguments->dtype, "of matrices: f32, bf16 or fp8 (e4m3, 128x128)")
      ->check(CLI::IsMember({"f32", "bf16", "fp8"}));
  command->add_option(
      "--spectrum", arguments->spectrum,
      "gaussian: independent elements; power:P: singular values j^-P; rank:R: R equal\n"
      "ones; FILE.json: a list, or lists by part of a tensor's name. expected.json in\n"
      "the folder states what was prescribed and what rounding can have changed");
  command->add_option("--seed", arguments->seed, "other values, same shapes");
  command->callback([arguments, &globals] { synth(*arguments, globals); });
}

}  // namespace subspace
