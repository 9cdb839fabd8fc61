#include "report/lora_report.h"

#include <cstdio>

#include "base/json.h"
#include "cli/lora.h"

namespace subspace {
namespace {

struct Arguments {
  std::vector<std::string> runs;
  std::string out;
  ReportOptions options;
};

}  // namespace

void add_lora_report(CLI::App& lora, const GlobalOptions& globals) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = lora.add_subcommand(
      "report",
      "One self-contained HTML page about one adapter, or several compared.\n\n"
      "  subspace lora heads --adapter ./lora --out run\n"
      "  subspace lora report run --out report.html\n"
      "  subspace lora report run-qv run-qkvo --out compared.html\n\n"
      "DIR holds heads.json (lora heads) and, where they were made, compose.json (lora compose) "
      "and\n"
      "causal.json (lora causal). Every figure says what one sees and how not to misread it, and\n"
      "saves its numbers as CSV. Printed: the path of the page.");
  command->add_option("runs", arguments->runs, "folders that `subspace lora heads` wrote")
      ->required();
  command->add_option("--out", arguments->out, "the page to write")->required();
  command->add_option(
      "--plotlyjs", arguments->options.plotlyjs,
      "embed: the page opens offline; cdn: smaller, needs the network; or the path\n"
      "of a plotly.min.js to embed");
  command->callback([arguments, &globals] {
    std::vector<std::filesystem::path> runs(arguments->runs.begin(), arguments->runs.end());
    write_lora_report(runs, arguments->out, arguments->options);
    if (globals.json) {
      std::printf("%s\n", Json({{"report", arguments->out}}).dump().c_str());
    } else {
      std::printf("%s\n", arguments->out.c_str());
    }
  });
}

}  // namespace subspace
