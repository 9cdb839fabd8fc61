#include <cstdio>

#include "base/error.h"
#include "base/progress.h"
#include "cli/commands.h"
#include "train/induction.h"
#include "train/match.h"
#include "train/provenance.h"
#include "train/run_state.h"
#include "train/trainer.h"

namespace subspace {
namespace {

struct TrainArguments {
  std::string config, data, out, base, from, kind, match;
  std::vector<std::string> sets;
  std::int64_t steps = 0, seed = -1;
  bool resume = false, deterministic = false;
};

/// The configuration with another kind of feed-forward part, at the cost of its own.
void be_matched(train::Experiment& experiment, const TrainArguments& arguments) {
  if (arguments.kind.empty() != arguments.match.empty()) {
    fail(ErrorCode::Usage, "--kind and --match go together: {} is missing",
         arguments.kind.empty() ? "--kind" : "--match");
  }
  if (arguments.kind.empty()) return;
  if (experiment.adapter.is_object()) {
    fail(ErrorCode::Usage, "--kind: an adapter's model is that of --base");
  }
  const train::Matched found =
      train::match_model(experiment.model, train::read_settings(experiment), arguments.kind,
                         train::match_by(arguments.match), experiment.where);
  message(train::match_text(found));
  experiment.model = found.model;
}

void train_model(const TrainArguments& arguments, const GlobalOptions& globals) {
  const std::string base = arguments.base.empty() ? "" : resolve_model(arguments.base).string();
  train::Experiment experiment = train::read_experiment(arguments.config, arguments.sets, base);
  if (arguments.steps > 0) experiment.train["steps"] = arguments.steps;
  if (arguments.seed >= 0) experiment.train["seed"] = arguments.seed;
  be_matched(experiment, arguments);
  if (!arguments.from.empty()) {
    train::begin_with(experiment, train::newest_model(resolve_model(arguments.from)));
  }
  train::RunOptions options;
  options.out = arguments.out;
  options.threads = chosen_threads(globals);
  options.device = chosen_device(globals);
  options.resume = arguments.resume;
  options.deterministic = arguments.deterministic;
  options.batches = [&](const nn::ModelConfig& model, const train::Settings& settings) {
    return train::open_folder(arguments.data, model, settings);
  };
  const Json result = train::train(experiment, nullptr, options);
  std::printf("%s\n", globals.json ? result.dump().c_str() : arguments.out.c_str());
}

}  // namespace

void add_train(CLI::App& app, const GlobalOptions& globals) {
  auto arguments = std::make_shared<TrainArguments>();
  CLI::App* command = app.add_subcommand(
      "train",
      "Pre-trains a model on data that `python -m subspace.prepare` made. A killed run goes on "
      "with\n"
      "--resume and ends with the same bits as an undisturbed one.\n\n"
      "  subspace train configs/tiny-encoder-mla-o.json --data data --out run\n"
      "  subspace train configs/encoder-mla.json --data data --out run --set learning_rate=1e-3");
  command->add_option("config", arguments->config, "model and training, one JSON file")->required();
  command->add_option("--data", arguments->data, "folder of subspace.prepare, or with task.json")
      ->required();
  command->add_option(
      "--base", arguments->base,
      "MODEL that stays as it is while an adapter on it is trained; CONFIG then has\n"
      "`adapter` (r, lora_alpha, target_modules) and `train`");
  command->add_option(
      "--from", arguments->from,
      "run, checkpoint of one, or MODEL whose weights a new run begins with, at step 0 and with\n"
      "a fresh optimiser; CONFIG has the same model, and any settings");
  command->add_option("--out", arguments->out, "folder of the run")->required();
  command->add_option("--steps", arguments->steps, "instead of the configuration's")
      ->check(whole_from(1));
  command->add_option("--seed", arguments->seed, "first weights, order of the data and masks")
      ->check(whole_from(0));
  command
      ->add_option("--set", arguments->sets,
                   "name=value: any field of the model or of its training; may be repeated")
      ->allow_extra_args(false);
  command
      ->add_option("--kind", arguments->kind,
                   "another kind of feed-forward part than CONFIG's, at CONFIG's cost")
      ->check(CLI::IsMember(nn::kFeedForwards));
  command->add_option("--match", arguments->match, "what is equal then; `subspace match` has more")
      ->check(CLI::IsMember({"flops", "params"}));
  command->add_flag("--resume", arguments->resume, "go on from the last checkpoint in --out");
  command->add_flag("--deterministic", arguments->deterministic,
                    "the same bits again on a GPU too, somewhat slower");
  command->callback([arguments, &globals] { train_model(*arguments, globals); });
}

}  // namespace subspace
