#include <ATen/ATen.h>

#include <cstdio>

#include "base/error.h"
#include "base/progress.h"
#include "cli/commands.h"
#include "nn/model.h"

namespace subspace {
namespace {

struct InitArguments {
  std::string config, out, dtype = "float32";
  std::uint64_t seed = 0;
};

void init(const InitArguments& arguments, const GlobalOptions& globals) {
  chosen_threads(globals);
  const std::filesystem::path out = arguments.out;
  if (std::filesystem::exists(out / "config.json")) {
    fail(ErrorCode::InvalidValue, "{}: holds a model already; choose another --out", out.string());
  }
  Json json = read_json_file(arguments.config);
  if (json.is_object()) json.erase("train");
  nn::Model::Options options;
  options.dtype = arguments.dtype == "float64" ? at::kDouble : at::kFloat;
  options.seed = arguments.seed;
  const nn::Model model(nn::read_model_config(json, arguments.config), options);
  nn::save_model(model, out);
  const std::int64_t count = model.parameters().count();
  if (globals.json) {
    std::printf("%s\n", Json({{"out", arguments.out}, {"parameters", count}}).dump().c_str());
    return;
  }
  std::printf("%s\n", arguments.out.c_str());
  message(
      fmt::format("{} parameters ({:.2f} x 2^20)", count, static_cast<double>(count) / 1048576));
}

}  // namespace

void add_init(CLI::App& app, const GlobalOptions& globals) {
  auto arguments = std::make_shared<InitArguments>();
  CLI::App* command = app.add_subcommand(
      "init",
      "A model of a configuration with its first weights, untrained: what training would begin\n"
      "with, and the random model to compare a trained one with.");
  command
      ->add_option("config", arguments->config, "configuration, e.g. configs/tiny-decoder-mla.json")
      ->required();
  command->add_option("--out", arguments->out, "folder for config.json and model.safetensors")
      ->required();
  command->add_option("--dtype", arguments->dtype, "of the weights")
      ->check(CLI::IsMember({"float32", "float64"}));
  command->add_option("--seed", arguments->seed, "other first weights");
  command->callback([arguments, &globals] { init(*arguments, globals); });
}

}  // namespace subspace
