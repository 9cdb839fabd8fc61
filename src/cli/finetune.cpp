#include "train/finetune.h"

#include <cstdio>

#include "cli/commands.h"

namespace subspace {
namespace {

struct FinetuneArguments {
  std::string model, data, out;
  std::vector<std::uint64_t> seeds = {0};
  std::vector<std::string> sets;
  double epochs = 3;
  bool resume = false, deterministic = false;
};

void print_accuracy(const Json& result) {
  std::printf("%-6s  %9s  %7s  %8s\n", "seed", "accuracy", "loss", "seconds");
  for (const Json& run : result.at("runs")) {
    std::printf("%-6s  %9.4f  %7.4f  %8.1f\n", run.at("seed").dump().c_str(),
                run.at("accuracy").get<double>(), run.at("loss").get<double>(),
                run.at("seconds").get<double>());
  }
  const Json& mean = result.at("accuracy");
  if (mean.at("half_width_95").is_null()) return;
  std::printf("%-6s  %9.4f  +- %.4f (95 %%)\n", "mean", mean.at("mean").get<double>(),
              mean.at("half_width_95").get<double>());
}

void finetune(const FinetuneArguments& arguments, const GlobalOptions& globals) {
  train::FinetuneOptions options;
  options.base = resolve_model(arguments.model);
  options.out = arguments.out;
  options.data = std::make_shared<const Dataset>(arguments.data);
  options.epochs = arguments.epochs;
  options.seeds = arguments.seeds;
  options.sets = arguments.sets;
  options.device = chosen_device(globals);
  options.threads = chosen_threads(globals);
  options.resume = arguments.resume;
  options.deterministic = arguments.deterministic;
  const Json result = train::finetune(options);
  if (globals.json) {
    std::printf("%s\n", result.dump().c_str());
  } else {
    print_accuracy(result);
  }
}

}  // namespace

void add_finetune(CLI::App& app, const GlobalOptions& globals) {
  auto arguments = std::make_shared<FinetuneArguments>();
  CLI::App* command = app.add_subcommand(
      "finetune",
      "Trains a pre-trained encoder further, all of it and a new classifier on its first token, "
      "on\n"
      "texts with a class (`python -m subspace.prepare sst2`), once a seed. Prints the share of\n"
      "held-out texts whose class is right behind the last epoch.\n\n"
      "  subspace finetune run --data sst2 --out tuned --seeds 0,1,2\n"
      "  subspace eval tuned/seed_0 --data sst2");
  command->add_option("model", arguments->model, "folder of a run or MODEL: an encoder")
      ->required();
  command->add_option("--data", arguments->data, "folder of subspace.prepare sst2")->required();
  command->add_option("--out", arguments->out, "folder for seed_<s>/ and result.json")->required();
  command->add_option("--epochs", arguments->epochs, "times that every row is seen")
      ->check(above_zero());
  command->add_option("--seeds", arguments->seeds, "of the classifier and the rows' order: 0,1,2")
      ->delimiter(',')
      ->check(whole_from(0))
      ->allow_extra_args(false);
  command
      ->add_option("--set", arguments->sets,
                   "name=value: learning_rate, batch_size, or any other field of a configuration;\n"
                   "may be repeated")
      ->allow_extra_args(false);
  command->add_flag("--resume", arguments->resume, "keep finished seeds, go on with others");
  command->add_flag("--deterministic", arguments->deterministic,
                    "the same bits again on a GPU too, somewhat slower");
  command->callback([arguments, &globals] { finetune(*arguments, globals); });
}

}  // namespace subspace
