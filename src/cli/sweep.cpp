#include "train/sweep.h"

#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "base/progress.h"
#include "cli/commands.h"
#include "report/sweep_report.h"

namespace subspace {
namespace {

struct SweepArguments {
  std::string file, data, out;
  bool deterministic = false;
};

std::string cell(const Json& numbers, const std::string& name) {
  if (!numbers.contains(name) || numbers.at(name).at("mean").is_null()) return "-";
  const double mean = numbers.at(name).at("mean").get<double>();
  const Json& half = numbers.at(name).at("half_width_95");
  return half.is_null() ? fmt::format("{:.4g}", mean)
                        : fmt::format("{:.4g} +- {:.2g}", mean, half.get<double>());
}

void print_sweep(const Json& table) {
  const char* columns[] = {"held_out_loss",     "held_out_accuracy", "held_out_perplexity",
                           "tokens_per_second", "milliseconds",      "overlap_of_layers"};
  std::vector<std::string> shown;
  for (const char* column : columns) {
    for (const Json& arm : table.at("arms")) {
      if (!arm.at("numbers").contains(column)) continue;
      shown.push_back(column);
      break;
    }
  }
  std::size_t widest = 3;
  for (const Json& arm : table.at("arms")) {
    widest = std::max(widest, arm.at("arm").get<std::string>().size());
  }
  std::string line = fmt::format("{:<{}}", "arm", widest);
  for (const std::string& column : shown) line += fmt::format("  {:>20}", column);
  std::printf("%s\n", line.c_str());
  for (const Json& arm : table.at("arms")) {
    line = fmt::format("{:<{}}", arm.at("arm").get<std::string>(), widest);
    for (const std::string& column : shown) {
      line += fmt::format("  {:>20}", cell(arm.at("numbers"), column));
    }
    std::printf("%s\n", line.c_str());
  }
}

/// The numbers are there whatever becomes of the page.
void write_sweep_page(const std::filesystem::path& folder) {
  try {
    write_sweep_report(folder, folder / "sweep.html");
    message("page: " + (folder / "sweep.html").string());
  } catch (const Error& error) {
    if (error.code() != ErrorCode::NotFound) throw;
    message(fmt::format("no page: {}", error.what()));
  }
}

void sweep(const SweepArguments& arguments, const GlobalOptions& globals) {
  const train::SweepPlan plan = train::read_sweep(arguments.file);
  train::SweepOptions options;
  options.out = arguments.out;
  options.threads = chosen_threads(globals);
  options.device = chosen_device(globals);
  options.deterministic = arguments.deterministic;
  if (!arguments.data.empty()) options.data = std::make_shared<const Dataset>(arguments.data);
  const Json table = train::run_sweep(plan, options);
  write_sweep_page(options.out);
  if (globals.json) {
    std::printf("%s\n", table.dump().c_str());
  } else {
    print_sweep(table);
  }
}

}  // namespace

void add_sweep(CLI::App& app, const GlobalOptions& globals) {
  auto arguments = std::make_shared<SweepArguments>();
  CLI::App* command = app.add_subcommand(
      "sweep",
      "Trains (or times) every combination of a grid of settings, each with several seeds, and\n"
      "writes one table with means and 95 % intervals, and a page of it. Stopped at any\n"
      "moment, the same command goes on.\n\n"
      "  subspace sweep configs/sweeps/latents.json --data data --out sweep\n"
      "  subspace sweep configs/sweeps/layer-time.json --out times");
  command->add_option("file", arguments->file, "what to compare, JSON (docs/training.md)")
      ->required();
  command->add_option("--data", arguments->data, "folder of subspace.prepare");
  command->add_option("--out", arguments->out, "folder of the sweep")->required();
  command->add_flag("--deterministic", arguments->deterministic,
                    "the same bits again on a GPU too, somewhat slower");
  command->callback([arguments, &globals] { sweep(*arguments, globals); });
}

}  // namespace subspace
