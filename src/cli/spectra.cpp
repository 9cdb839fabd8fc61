#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "base/progress.h"
#include "checkpoint/checkpoint.h"
#include "cli/commands.h"
#include "spectrum/run.h"

namespace subspace {
namespace {

struct SpectraArguments {
  std::string model, out, layers, normalize = "none", offsets, space = "latent",
                                  conventions = "default";
  bool fold_norms = false, exact = false, mark_nonfinite = false, resume = false, force = false;
};

/// Median over heads of a column of summary.json.
double median(const Json& column) {
  std::vector<double> values;
  for (const Json& value : column) {
    if (value.is_number()) values.push_back(value.get<double>());  // null: a marked head
  }
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

std::string cell(const Json& entry) {
  if (entry.contains("heads")) {
    return fmt::format("{:.0f}/{}", median(entry.at("heads").at("rank_0.99")),
                       entry.at("random").at("rank_0.99").get<std::int64_t>());
  }
  const Json& stack = entry.at("stack");
  return fmt::format("{}/{}", stack.at("rank_0.99").get<std::int64_t>(),
                     stack.at("random").at("rank_0.99").get<std::int64_t>());
}

void print_summary(const Json& summary) {
  std::printf(
      "Effective rank at 99%% of the energy, found/by chance (per head: median over heads).\n");
  std::vector<std::string> columns;
  for (const auto& [map, entry] : summary.at("layers").front().at("maps").items()) {
    if (map.find('@') == std::string::npos) columns.push_back(map);
  }
  auto header = [&](const char* title, auto has) {
    std::printf("\n%-14s", title);
    for (const auto& map : columns) {
      if (has(summary.at("layers").front().at("maps").at(map))) std::printf(" %12s", map.c_str());
    }
    std::printf("\n");
  };
  auto rows = [&](auto has, auto text) {
    for (const Json& layer : summary.at("layers")) {
      std::printf("layer %-8lld", static_cast<long long>(layer.at("layer").get<std::int64_t>()));
      for (const auto& map : columns) {
        const Json& entry = layer.at("maps").at(map);
        if (has(entry)) std::printf(" %12s", text(entry).c_str());
      }
      std::printf("\n");
    }
  };
  auto has_heads = [](const Json& entry) { return entry.contains("heads"); };
  auto has_stack = [](const Json& entry) { return entry.contains("stack"); };
  header("per head", has_heads);
  rows(has_heads, cell);
  header("stacked", has_stack);
  rows(has_stack, [](const Json& entry) {
    const Json only = {{"stack", entry.at("stack")}};
    return cell(only);
  });
}

/// One layer in one line, for standard error while the run goes on.
void show_row(const Json& layer) {
  std::string row = fmt::format("layer {:<4}", layer.at("layer").get<std::int64_t>());
  for (const auto& [map, entry] : layer.at("maps").items()) {
    if (map.find('@') == std::string::npos) row += fmt::format("  {} {}", map, cell(entry));
  }
  // Progress redraws its line in place on a terminal; the row takes its place.
  message((isatty(STDERR_FILENO) ? "\r\033[K" : "") + row);
  for (const Json& note : layer.at("notes")) message("  " + note.get<std::string>());
}

HeadScaling scaling(const std::string& name) {
  if (name == "spectral") return HeadScaling::spectral;
  if (name == "frobenius") return HeadScaling::frobenius;
  return HeadScaling::none;
}

void spectra(const SpectraArguments& arguments, const GlobalOptions& globals) {
  RunOptions options;
  options.model = resolve_model(arguments.model);
  options.model_name = std::filesystem::path(arguments.model).filename().string();
  if (options.model_name.empty()) options.model_name = options.model.parent_path().filename();
  options.out = arguments.out;
  if (!arguments.layers.empty()) options.layers = parse_layers(arguments.layers);
  if (arguments.conventions == "published-2025") {
    if (arguments.normalize != "none" && arguments.normalize != "spectral") {
      fail(ErrorCode::Usage,
           "--normalize {}: --conventions published-2025 divides heads by their largest singular "
           "value; leave one of the two out",
           arguments.normalize);
    }
    options.spectra = published_2025();
  } else {
    options.spectra.normalize = scaling(arguments.normalize);
    options.spectra.fold_norms = arguments.fold_norms;
  }
  options.conventions = arguments.conventions;
  options.spectra.space = arguments.space == "model" ? Space::model : Space::latent;
  options.spectra.mark_nonfinite = arguments.mark_nonfinite;
  options.spectra.exact = arguments.exact;
  if (!arguments.offsets.empty()) options.spectra.offsets = parse_offsets(arguments.offsets);
  options.device = chosen_device(globals);
  options.threads = chosen_threads(globals);
  options.resume = arguments.resume;
  options.force = arguments.force;
  if (options.resume && options.force) {
    fail(ErrorCode::Usage,
         "--resume and --force exclude each other: one keeps finished layers, "
         "the other replaces them");
  }
  options.on_layer = show_row;
  const Json summary = run_spectra(options);
  if (globals.json) {
    std::printf("%s\n", summary.dump().c_str());
    return;
  }
  print_summary(summary);
  message(fmt::format("\n{} of {} read in {}; results in {} (subspace report {} --out report.html)",
                      format_bytes(summary.at("bytes_read").get<std::uint64_t>()),
                      format_bytes(summary.at("bytes_in_checkpoint").get<std::uint64_t>()),
                      format_seconds(summary.at("times").at("total_seconds").get<double>()),
                      arguments.out, arguments.out));
}

}  // namespace

void add_spectra(CLI::App& app, const GlobalOptions& globals) {
  auto arguments = std::make_shared<SpectraArguments>();
  CLI::App* command = app.add_subcommand(
      "spectra",
      "All singular values of every attention matrix of a model: per head, stacked per layer,\n"
      "MLA's latents, rotary parts, and the fused maps W_VO and W_QK, with effective ranks and "
      "what\n"
      "chance alone would give. Needs the memory of two layers, reads only what attention "
      "needs.\n\n"
      "  subspace spectra ./DeepSeek-V3 --out v3 --layers 0-5,60\n"
      "  subspace spectra org/name --out run --fold-norms --resume\n\n"
      "Printed: a table of ranks at 99 % of the energy. 'O 247/296' says that 247 directions "
      "carry\n"
      "it and that a random matrix of that shape would need 296: only the difference is "
      "structure.\n"
      "In DIR: spectra.safetensors (every value), summary.json (metrics), ranks.csv; "
      "docs/files.md\n"
      "has every field, docs/maps.md what Q, VO, QK@16 and the others are. Ctrl-C keeps finished\n"
      "layers.");
  command->add_option("model", arguments->model, "MODEL (see subspace --help)")->required();
  command->add_option("--out", arguments->out, "folder for the results")->required();
  command->add_option("--layers", arguments->layers,
                      "layers and ranges, e.g. 0-5,7 (default: all)");
  command
      ->add_option("--normalize", arguments->normalize,
                   "before stacking, divide each head by nothing, its largest singular value\n"
                   "(spectral) or its Frobenius norm (frobenius)")
      ->check(CLI::IsMember({"none", "spectral", "frobenius"}));
  command->add_flag("--fold-norms", arguments->fold_norms,
                    "fold norm weights into what reads the norm's output");
  command->add_option(
      "--offsets", arguments->offsets,
      "offsets of the rotary map, query position - key position: 0:257, 0:257:8 or\n"
      "0,1,16 (default: 0 and the powers of two up to 256)");
  command->add_flag(
      "--exact", arguments->exact,
      "Householder SVD of the real matrices instead of Gram matrices: slow, resolves\n"
      "values below 1e-8 of the largest");
  command
      ->add_option("--space", arguments->space,
                   "fused maps of latent attention: between the latents (latent) or carried\n"
                   "through them to the model's width (model)")
      ->check(CLI::IsMember({"latent", "model"}));
  command
      ->add_option("--conventions", arguments->conventions,
                   "published-2025: heads divided by their largest singular value, norms folded,\n"
                   "and the faults of the published procedure, to compare with its tables")
      ->check(CLI::IsMember({"default", "published-2025"}));
  command->add_flag("--mark-nonfinite", arguments->mark_nonfinite,
                    "heads with NaN or Inf get null and are left out of stacks, instead of an "
                    "error");
  command->add_flag("--resume", arguments->resume, "keep finished layers of an interrupted run");
  command->add_flag("--force", arguments->force, "replace results that are there");
  command->callback([arguments, &globals] { spectra(*arguments, globals); });
}

}  // namespace subspace
