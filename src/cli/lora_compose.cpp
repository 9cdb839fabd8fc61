#include <cstdio>

#include "base/atomic_file.h"
#include "base/error.h"
#include "cli/lora.h"
#include "lora/compose_run.h"
#include "lora/layer_origin.h"

namespace subspace {
namespace {

struct ComposeArguments {
  LoraInput input;
  std::string out, layers, offsets;
  std::vector<std::string> between;
  std::int64_t top = 100;
  double floor = 0.05;
};

/// "3-7" -> (3, 7)
std::pair<std::int64_t, std::int64_t> layer_pair(const std::string& text) {
  const auto dash = text.find('-');
  if (dash != std::string::npos) {
    const auto first = parse_layers(text.substr(0, dash)),
               second = parse_layers(text.substr(dash + 1));
    if (first.size() == 1 && second.size() == 1) return {first[0], second[0]};
  }
  fail(ErrorCode::Usage, "--between {}: expected two layers, for example 3-7", text);
}

ComposeSource compose_source(const AdaptedModel& model, int threads) {
  ComposeSource source;
  const ModelShape& shape = model.family().shape();
  for (std::int64_t i = 0; i < shape.layers; ++i) {
    source.changes.push_back(model.change(i, threads));
    source.changes.back().index = i;
    source.output_norms.push_back(layer_norms(model.family(), model.checkpoint(), i).output);
  }
  source.load = [&model, threads](std::int64_t layer) { return model.load(layer, threads); };
  return source;
}

void print_pairs(const Json& result) {
  std::printf("%-14s %-5s %10s %10s %12s  %-7s %-22s %9s\n", "layers", "mode", "rho", "rho_max",
              "between", "q_bh", "share bn / nb / nn", "lift bn");
  std::size_t shown = 0;
  for (const Json& s : result.at("screens")) {
    if (++shown > 12) break;
    auto share = [&](const char* route) {
      const Json& value = s.at("share").at(route);
      return value.is_null() || !value.is_number() ? 0.0 : value.get<double>();
    };
    const Json& lift = s.at("lift").at("bn");
    std::printf(
        "%4ld -> %-6ld %-5s %10.4g %10.4g %12s  %-7.2g %6.2f %6.2f %6.2f   %9.3g\n",
        s.at("w").get<long>(), s.at("r").get<long>(), s.at("mode").get<std::string>().c_str(),
        s.at("rho").get<double>(), s.at("rho_max").get<double>(),
        fmt::format("{} -> {}", s.at("heads")[0].get<int>(), s.at("heads")[1].get<int>()).c_str(),
        s.at("q_bh").get<double>(), share("bn"), share("nb"), share("nn"),
        lift.is_number() ? lift.get<double>() : 0.0);
  }
  std::printf("%zu screens of pairs of layers; %ld of %ld pairs of heads have rho above %g\n",
              result.at("screens").size(), result.at("above_floor").get<long>(),
              result.at("head_pairs").get<long>(), result.at("floor").get<double>());
  const Json& drawn = result.at("drawn");
  std::printf(
      "chances of the first %ld pairs of heads, drawn %ld times: %ld of %ld come out on the "
      "other side of %g\n",
      drawn.at("pairs").get<long>(), drawn.at("draws").get<long>(),
      drawn.at("otherwise").get<long>(), drawn.at("chances").get<long>(),
      drawn.at("level").get<double>());
}

void compose_model(const ComposeArguments& arguments, const GlobalOptions& globals) {
  const int threads = chosen_threads(globals);
  const AdaptedModel model = open_adapted(arguments.input, /*need_weights=*/true);
  ComposeOptions options;
  options.top = arguments.top;
  options.floor = arguments.floor;
  if (!arguments.layers.empty()) options.layers = parse_layers(arguments.layers);
  if (!arguments.offsets.empty()) options.offsets = parse_offsets(arguments.offsets);
  for (const std::string& text : arguments.between) options.between.push_back(layer_pair(text));
  const ComposeSource source = compose_source(model, threads);
  Json result = compose(source, options);
  result["model"] = lora_facts(model);
  const std::filesystem::path out = arguments.out;
  create_folder(out);
  write_file_atomically(out / "compose.csv", compose_pairs_csv(result));
  write_file_atomically(out / "compose_screens.csv", compose_screens_csv(result));
  write_file_atomically(out / "compose.json", result.dump(1) + "\n");
  if (globals.json) {
    std::printf("%s\n", result.dump().c_str());
  } else {
    print_pairs(result);
    std::printf("%s\n", (out / "compose.json").c_str());
  }
}

}  // namespace

void add_lora_compose(CLI::App& lora, const GlobalOptions& globals) {
  auto arguments = std::make_shared<ComposeArguments>();
  CLI::App* command = lora.add_subcommand(
      "compose",
      "Which heads an adapter rewires: how what one head writes meets what a later one reads.\n\n"
      "  subspace lora compose --base MODEL --adapter ADAPTER --out DIR\n"
      "  subspace lora compose --adapter ADAPTER --out DIR --between 3-7 --offsets 1\n\n"
      "All pairs of layers are screened from thin products, then the pairs of heads that change\n"
      "most get full scores. Writes compose.json, compose.csv and compose_screens.csv\n"
      "(docs/lora-composition.md).");
  add_lora_input(*command, arguments->input);
  command->add_option("--out", arguments->out, "folder of the results")->required();
  command->add_option("--layers", arguments->layers,
                      "those that take part, 0-5,7; all if left out");
  command->add_option("--offsets", arguments->offsets,
                      "of rotary models, a:b or a list; scores are root mean squares over them.\n"
                      "Left out: 0:257");
  command->add_option("--top", arguments->top, "pairs of heads with full scores")
      ->check(CLI::Range(0, 100000));
  command
      ->add_option("--between", arguments->between,
                   "two layers, all whose pairs of heads get full scores; may be repeated")
      ->allow_extra_args(false);
  command->add_option("--floor", arguments->floor, "rho above which a pair counts as rewired")
      ->check(CLI::NonNegativeNumber);
  command->callback([arguments, &globals] { compose_model(*arguments, globals); });
}

}  // namespace subspace
