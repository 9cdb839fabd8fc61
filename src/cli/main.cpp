#include <ATen/Version.h>
#include <c10/util/Exception.h>
#include <fmt/ranges.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <sstream>
#include <string_view>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/json.h"
#include "base/progress.h"
#include "base/version.h"
#include "cli/commands.h"

namespace {

using namespace subspace;

std::string version_text() {
  const auto sets = instruction_sets();
  return fmt::format("subspace {} (commit {}, {})\ntorch {}\ninstruction sets: {}\ndevices: {}",
                     version(), git_commit(), compiler(), TORCH_VERSION,
                     sets.empty() ? "baseline" : fmt::format("{}", fmt::join(sets, ", ")),
                     chosen_device({}).is_cuda() ? "cpu, cuda" : "cpu");
}

/// Each command in the program's own help by its first paragraph; its examples are in its own help.
class Help : public CLI::Formatter {
 public:
  std::string make_subcommand(const CLI::App* command) const override {
    const std::string text = command->get_description();
    std::stringstream out;
    CLI::detail::format_help(out, command->get_name(), text.substr(0, text.find("\n\n")),
                             get_column_width());
    return out.str();
  }
  std::string make_description(const CLI::App* app) const override {
    return CLI::Formatter::make_description(app) + "\n";
  }
};

int report_error(const GlobalOptions& globals, const char* code, const std::string& what,
                 int status) {
  std::fprintf(stderr, "error: %s\n", what.c_str());
  if (globals.json) {
    const Json error = {{"error", {{"code", code}, {"message", what}}}};
    std::printf("%s\n", error.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  }
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  GlobalOptions globals;
  CLI::App app(
      "Low-rank structure in Transformers, measured.\n\n"
      "MODEL is a folder in Hugging Face layout (config.json and safetensors files), or\n"
      "org/name[@revision] of a model in the Hugging Face cache.\n\n"
      "  subspace inspect MODEL                        what it is, what would be read\n"
      "  subspace spectra MODEL --out DIR              all singular values of its attention\n"
      "  subspace report DIR --out report.html         a page that shows and explains them\n"
      "  subspace synth deepseek-v3 --out DIR          random weights at real shapes, to measure",
      "subspace");
  app.formatter(std::make_shared<Help>());
  app.require_subcommand(1);
  app.fallthrough();
  app.option_defaults()->always_capture_default();
  app.add_option("--device", globals.device, "auto, cpu, cuda or cuda:i");
  app.add_option("--threads", globals.threads, "CPU threads; 0: one a core")
      ->check(CLI::Range(0, 4096));
  app.add_flag("--quiet", globals.quiet, "no progress or messages on standard error");
  app.add_flag("--json", globals.json, "the result on standard output as JSON");
  app.set_version_flag("--version", version_text);
  add_inspect(app, globals);
  add_spectra(app, globals);
  add_report(app, globals);
  add_synth(app, globals);
  add_lora(app, globals);
  add_ethos(app, globals);
  add_export(app, globals);
  add_forward(app, globals);
  add_init(app, globals);
  add_match(app, globals);
  add_train(app, globals);
  add_finetune(app, globals);
  add_sweep(app, globals);
  add_eval(app, globals);
  app.parse_complete_callback([&] { set_quiet(globals.quiet); });
  app.footer(
      "Exit status: 0 done; 1 failed (error: what, where, found, expected, what to do); 2 wrong\n"
      "usage; 130 interrupted, with what is done kept.");

  catch_interrupts();
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    // Parsing may have stopped before it came to --json.
    globals.json = std::any_of(argv, argv + argc,
                               [](const char* word) { return std::string_view(word) == "--json"; });
    report_error(globals, "usage", error.what(), 2);
    std::fprintf(stderr, "Run subspace --help, or subspace COMMAND --help.\n");
    return 2;
  } catch (const Error& error) {
    return report_error(globals, error_code_name(error.code()), error.what(),
                        exit_status(error.code()));
  } catch (const c10::Error& error) {
    return report_error(globals, "internal", error.what_without_backtrace(), 1);
  } catch (const std::bad_alloc&) {
    return report_error(globals, "io", "out of memory; fewer --threads or a machine with more", 1);
  } catch (const std::exception& error) {
    return report_error(globals, "internal", error.what(), 1);
  }
}
