#include <ATen/Version.h>
#include <c10/util/Exception.h>
#include <torch/headeronly/version.h>

#include <cstdio>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/json.h"
#include "base/progress.h"
#include "base/version.h"
#include "cli/commands.h"

namespace {

using namespace subspace;

std::string version_text() {
  std::string sets;
  if (__builtin_cpu_supports("avx2")) sets += " avx2";
  if (__builtin_cpu_supports("avx512f")) sets += " avx512f";
  return fmt::format("subspace {} (commit {}, {})\ntorch {}\ninstruction sets:{}\ndevices: {}",
                     version(), git_commit(), compiler(), TORCH_VERSION,
                     sets.empty() ? " baseline" : sets,
                     chosen_device({}).is_cuda() ? "cpu, cuda" : "cpu");
}

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
      "  subspace synth deepseek-v3 --out DIR          random weights at real shapes, to measure\n",
      "subspace");
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
  add_export(app, globals);
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
    std::fprintf(stderr, "error: %s\nRun subspace --help, or subspace COMMAND --help.\n",
                 error.what());
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
