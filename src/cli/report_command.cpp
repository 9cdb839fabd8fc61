#include <cstdio>

#include "base/json.h"
#include "cli/commands.h"
#include "report/report.h"

namespace subspace {
namespace {

struct Arguments {
  std::vector<std::string> runs;
  std::string out;
  ReportOptions options;
};

}  // namespace

void add_report(CLI::App& app, const GlobalOptions& globals) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "report",
      "One self-contained HTML page from result folders; several are compared.\n\n"
      "  subspace report run --out report.html\n"
      "  subspace report base finetuned --out compared.html\n\n"
      "The page opens from disk, offline, and says of each figure what one sees and how not to\n"
      "misread it; docs/report.md shows it. Printed: the path of the page.");
  command->add_option("runs", arguments->runs, "folders that `subspace spectra` wrote")->required();
  command->add_option("--out", arguments->out, "the page to write")->required();
  command->add_option(
      "--plotlyjs", arguments->options.plotlyjs,
      "embed: the page opens offline; cdn: smaller, needs the network; or the path\n"
      "of a plotly.min.js to embed");
  command->callback([arguments, &globals] {
    std::vector<std::filesystem::path> runs(arguments->runs.begin(), arguments->runs.end());
    write_report(runs, arguments->out, arguments->options);
    if (globals.json) {
      std::printf("%s\n", Json({{"report", arguments->out}}).dump().c_str());
    } else {
      std::printf("%s\n", arguments->out.c_str());
    }
  });
}

}  // namespace subspace
