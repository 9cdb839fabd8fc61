#include <ATen/ATen.h>

#include <cstdio>

#include "base/error.h"
#include "cli/commands.h"
#include "train/induction.h"
#include "train/provenance.h"
#include "train/trainer.h"

namespace subspace {
namespace {

struct EvalArguments {
  std::string run, data, dtype = "float32";
  std::int64_t batch_size = 0;
};

/// How the run was trained, which says how it is evaluated: rows a pass, share of masked tokens.
train::Settings settings_of(const std::filesystem::path& run) {
  if (!std::filesystem::exists(run / "run.json")) {
    train::Settings settings;
    settings.batch_size = 32;
    return settings;
  }
  const Json json = read_json_file(run / "run.json");
  const std::string where = (run / "run.json").string();
  return train::read_settings(Fields(json, where).object("train").json(), where);
}

void eval(const EvalArguments& arguments, const GlobalOptions& globals) {
  const std::filesystem::path run = resolve_model(arguments.run);
  nn::Model::Options options;
  const int threads = chosen_threads(globals);
  options.device = chosen_device(globals);
  options.dtype = arguments.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  const auto model = nn::load_model(run, options, threads);
  train::Settings settings = settings_of(run);
  if (arguments.batch_size > 0) settings.batch_size = arguments.batch_size;
  const auto batches = train::open_folder(arguments.data, model->config(), settings);
  train::check_tokenizer(run, batches->tokenizer());
  batches->verify_held_out();
  const Json result = to_json(train::evaluate(*model, *batches, options.device));
  if (globals.json) {
    std::printf("%s\n", result.dump().c_str());
    return;
  }
  for (const auto& [name, value] : result.items()) {
    std::printf("%-16s %s\n", name.c_str(), value.dump().c_str());
  }
}

}  // namespace

void add_eval(CLI::App& app, const GlobalOptions& globals) {
  auto arguments = std::make_shared<EvalArguments>();
  CLI::App* command = app.add_subcommand(
      "eval",
      "Loss of a run (or of any model that `forward` runs) on the held-out rows of a data folder:\n"
      "nats a predicted token, perplexity = exp(loss), accuracy, tokens. Masked models are given\n"
      "the same masks every time. word_perplexity = exp(loss * text tokens / words) compares\n"
      "across tokenizers, masked models with masked models alone.");
  command->add_option("run", arguments->run, "folder of a run or MODEL")->required();
  command->add_option("--data", arguments->data, "folder of subspace.prepare")->required();
  command->add_option("--dtype", arguments->dtype, "weights and arithmetic")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  command->add_option("--batch-size", arguments->batch_size, "rows a pass (0: as in training)")
      ->check(CLI::NonNegativeNumber);
  command->callback([arguments, &globals] { eval(*arguments, globals); });
}

}  // namespace subspace
