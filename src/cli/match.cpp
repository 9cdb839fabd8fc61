#include "train/match.h"

#include <cstdio>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/progress.h"
#include "cli/commands.h"

namespace subspace {
namespace {

struct MatchArguments {
  std::string config, kind, by = "flops", out;
  std::vector<std::string> sets;
};

Json json_of(const train::ModelCounts& counts) {
  return {{"parameters", counts.parameters}, {"flops_per_token", counts.flops_per_token}};
}

/// What the reference costs, where no other kind is asked for.
void count_model(const train::Experiment& experiment, const train::Settings& settings,
                 const GlobalOptions& globals) {
  const auto counts = train::counts_of(train::read_model(experiment), settings);
  if (globals.json) {
    std::printf("%s\n", json_of(counts).dump().c_str());
  } else {
    std::printf("%s\n", train::counts_text(counts).c_str());
  }
}

void match(const MatchArguments& arguments, const GlobalOptions& globals) {
  const train::Experiment experiment = train::read_experiment(arguments.config, arguments.sets);
  const train::Settings settings = train::read_settings(experiment);
  if (arguments.kind.empty()) {
    count_model(experiment, settings, globals);
    return;
  }
  const train::Matched found = train::match_model(experiment.model, settings, arguments.kind,
                                                  train::match_by(arguments.by), experiment.where);
  if (!arguments.out.empty()) {
    Json config = found.model;
    config["train"] = experiment.train;
    write_file_atomically(arguments.out, config.dump(2) + "\n");
  }
  if (globals.json) {
    const Json result = {{"model", found.model},
                         {"field", found.field},
                         {"value", found.value},
                         {"reference", json_of(found.reference)},
                         {"found", json_of(found.found)}};
    std::printf("%s\n", result.dump().c_str());
  } else {
    std::printf("%s\n", train::match_text(found).c_str());
  }
}

}  // namespace

void add_match(CLI::App& app, const GlobalOptions& globals) {
  auto arguments = std::make_shared<MatchArguments>();
  CLI::App* command = app.add_subcommand(
      "match",
      "The configuration of another kind of feed-forward part that costs as much as CONFIG: as\n"
      "many floating point operations a token in training, or as many parameters. One width is\n"
      "chosen for it (docs/ethos.md says which). Without --kind: what CONFIG itself costs.\n\n"
      "  subspace match configs/ethos-paper.json\n"
      "  subspace match configs/ethos-small.json --kind dense --by flops --out dense.json");
  command->add_option("config", arguments->config, "the reference, with `train`")->required();
  command->add_option("--kind", arguments->kind, "of the other model's feed-forward part")
      ->check(CLI::IsMember(nn::kFeedForwards));
  command->add_option("--by", arguments->by, "what is made equal")
      ->check(CLI::IsMember({"flops", "params"}));
  command->add_option("--out", arguments->out, "file for the configuration that was found");
  command->add_option("--set", arguments->sets, "name=value: a field of the reference")
      ->allow_extra_args(false);
  command->callback([arguments, &globals] { match(*arguments, globals); });
}

}  // namespace subspace
