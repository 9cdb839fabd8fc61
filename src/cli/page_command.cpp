#include "cli/page_command.h"

#include <cstdio>

#include "base/json.h"

namespace subspace {
namespace {

struct PageArguments {
  std::vector<std::string> runs;
  std::string out;
  ReportOptions options;
};

}  // namespace

void add_page_command(CLI::App& app, const GlobalOptions& globals, const std::string& description,
                      const std::string& runs, WritePage write) {
  auto arguments = std::make_shared<PageArguments>();
  CLI::App* command = app.add_subcommand("report", description);
  command->add_option("runs", arguments->runs, runs)->required();
  command->add_option("--out", arguments->out, "the page to write")->required();
  command->add_option(
      "--plotlyjs", arguments->options.plotlyjs,
      "embed: the page opens offline; cdn: smaller, needs the network; or the path\n"
      "of a plotly.min.js to embed");
  command->callback([arguments, write, &globals] {
    write({arguments->runs.begin(), arguments->runs.end()}, arguments->out, arguments->options);
    if (globals.json) {
      std::printf("%s\n", Json({{"report", arguments->out}}).dump().c_str());
    } else {
      std::printf("%s\n", arguments->out.c_str());
    }
  });
}

}  // namespace subspace
