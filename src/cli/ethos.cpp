#include <cstdio>

#include "base/error.h"
#include "base/progress.h"
#include "checkpoint/checkpoint.h"
#include "cli/commands.h"
#include "experts/inspect.h"
#include "report/experts_report.h"

namespace subspace {
namespace {

struct InspectExpertsArguments {
  std::string run, data, out, plotlyjs = "embed";
  std::int64_t tokens = 32768;
};

std::string percents(const Json& share) {
  return fmt::format("{:.1f} %", 100 * share.get<double>());
}

void print_experts(const Json& result) {
  std::printf("%-6s %8s %10s %10s %10s %12s %12s\n", "layer", "used", "by chance", "KL, nats",
              "top 1 %", "nearest cos", "by chance");
  for (const Json& layer : result.at("layers")) {
    std::string line = fmt::format("{:<6}", layer.at("layer").get<std::int64_t>());
    if (layer.contains("usage")) {
      const Json& use = layer.at("usage").at("all");
      line += fmt::format(" {:>8} {:>10} {:>10.3f} {:>10}", percents(use.at("used")),
                          percents(use.at("chance").at("used")), use.at("kl_uniform").get<double>(),
                          percents(use.at("top_percent")));
    } else {
      line += fmt::format(" {:>8} {:>10} {:>10} {:>10}", "-", "-", "-", "-");
    }
    if (layer.contains("neighbours")) {
      const Json& found = layer.at("neighbours");
      line += fmt::format(" {:>12.3f} {:>12.3f}", found.at("cosines")[2].get<double>(),
                          found.at("chance")[2].get<double>());
    }
    std::printf("%s\n", line.c_str());
  }
  for (const Json& one : result.at("absent")) {
    std::printf("no %s: %s\n", one.at("what").get<std::string>().c_str(),
                one.at("why").get<std::string>().c_str());
  }
}

void inspect_run(const InspectExpertsArguments& arguments, const GlobalOptions& globals) {
  experts::InspectOptions options;
  // A run under way has no config.json yet, which resolve_model wants to see.
  options.run = arguments.run;
  if (!std::filesystem::is_directory(options.run)) options.run = resolve_model(arguments.run);
  options.data = arguments.data;
  options.out =
      arguments.out.empty() ? options.run / "experts" : std::filesystem::path(arguments.out);
  options.tokens = arguments.tokens;
  options.threads = chosen_threads(globals);
  options.device = chosen_device(globals);
  const Json result = experts::inspect_experts(options);
  const std::filesystem::path page = options.out / "experts.html";
  ReportOptions report;
  report.plotlyjs = arguments.plotlyjs;
  bool written = true;
  try {
    write_experts_report(options.out, page, report);
  } catch (const Error& error) {  // the numbers are there whatever becomes of the page
    if (error.code() != ErrorCode::NotFound) throw;
    written = false;
    message(fmt::format("no page: {}", error.what()));
  }
  if (globals.json) {
    std::printf("%s\n", result.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    return;
  }
  print_experts(result);
  std::printf("%s\n", (written ? page : options.out / "experts.json").c_str());
}

}  // namespace

void add_ethos(CLI::App& app, const GlobalOptions& globals) {
  CLI::App* ethos = app.add_subcommand("ethos",
                                       "What the experts of a model are, and which are used.\n\n"
                                       "  subspace ethos inspect RUN --data DIR");
  ethos->require_subcommand(1);
  ethos->fallthrough();
  auto arguments = std::make_shared<InspectExpertsArguments>();
  CLI::App* command = ethos->add_subcommand(
      "inspect",
      "How the experts of a model are used, by layer and head; which tokens choose them; singular\n"
      "values of their table and of the matrices that they share; groups and neighbours among\n"
      "them; what lies between two. Tables, and a page that shows and explains them.\n\n"
      "  subspace ethos inspect RUN --data DIR            into RUN/experts\n"
      "  subspace ethos inspect RUN --out DIR             the weights alone\n\n"
      "For runs with feed_forward ethos; peer, molae and moe as far as it applies. Printed: a\n"
      "table, what does not apply and why, and the path of the page. docs/ethos.md explains it.");
  command->add_option("run", arguments->run, "folder of a run, or MODEL")->required();
  command->add_option("--data", arguments->data,
                      "folder of subspace.prepare: text whose tokens choose (held-out rows, where\n"
                      "there are some)");
  command->add_option("--out", arguments->out, "folder of the results; RUN/experts if left out");
  command->add_option("--tokens", arguments->tokens, "how many tokens choose, whole passes")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 24));
  command->add_option("--plotlyjs", arguments->plotlyjs,
                      "as in `subspace report`: embed, cdn, or a plotly.min.js");
  command->callback([arguments, &globals] { inspect_run(*arguments, globals); });
}

}  // namespace subspace
