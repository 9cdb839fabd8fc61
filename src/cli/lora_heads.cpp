#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/kept_memory.h"
#include "base/progress.h"
#include "cli/lora.h"
#include "lora/adapter_alone.h"
#include "lora/embeddings.h"
#include "lora/heads_run.h"
#include "lora/layer_origin.h"
#include "lora/modules_run.h"

namespace subspace {
namespace {

struct HeadsArguments {
  LoraInput input;
  std::string out, layers, offsets, second_moment, modules = "auto";
  bool fold_norm = false, embedding_moment = false, token_copying = false, gain_free = false;
  std::int64_t vectors = 0;
};

/// The largest distance that is looked at where nothing is said, if the model goes that far.
constexpr std::int64_t kFarthest = 256;
const std::vector<std::int64_t> kListedOffsets = {0, 1, 2, 4, 8, 16, 32, 64, 128, 256};

std::vector<std::int64_t> usual_window(const AdaptedModel& model) {
  const Fields config(model.checkpoint().config(), "config.json");
  const std::int64_t context = config.positive_int_or("max_position_embeddings", kFarthest + 1);
  std::vector<std::int64_t> window;
  for (std::int64_t delta = 0; delta <= std::min(kFarthest, context - 1); ++delta) {
    window.push_back(delta);
  }
  return window;
}

/// Layers that are asked for, else those that the adapter changes.
std::vector<std::int64_t> chosen_layers(const AdaptedModel& model, const std::string& text) {
  std::vector<std::int64_t> layers;
  if (text.empty()) {
    for (const auto& touched : model.touched()) layers.push_back(touched.layer);
    return layers;
  }
  layers = parse_layers(text);
  const std::int64_t count = model.family().shape().layers;
  if (layers.back() >= count) {
    fail(ErrorCode::InvalidValue, "--layers {}: the model has layers 0 to {}", text, count - 1);
  }
  return layers;
}

/// What is computed from the base's embeddings.
void read_embeddings(const HeadsArguments& arguments, const AdaptedModel& model, int threads,
                     HeadsOptions& options) {
  if (!arguments.embedding_moment && !arguments.token_copying) return;
  const TokenTable input = input_embedding(model.checkpoint(), threads);
  if (arguments.embedding_moment) {
    const Norm norm = layer_norms(model.family(), model.checkpoint(), 0).input;
    options.embedding_moment = embedding_moment(input, norm, options.fold_norm);
  }
  if (arguments.token_copying) {
    options.token_map = token_map(input, output_embedding(model.checkpoint(), threads));
  }
}

HeadsOptions options_of(const HeadsArguments& arguments, const GlobalOptions& globals,
                        const AdaptedModel& model) {
  HeadsOptions options;
  options.out = arguments.out;
  options.layers = chosen_layers(model, arguments.layers);
  options.window =
      arguments.offsets.empty() ? usual_window(model) : parse_offsets(arguments.offsets);
  options.curve = kListedOffsets;
  options.fold_norm = arguments.fold_norm;
  options.second_moment = arguments.second_moment;
  options.vectors = arguments.vectors;
  options.gain_free = arguments.gain_free;
  options.device = chosen_device(globals);
  return options;
}

HeadsSource heads_source(const AdaptedModel& model, int threads, const at::Device& device) {
  HeadsSource source;
  source.load = [&model, threads, device](std::int64_t layer) {
    return model.load(layer, threads, device);
  };
  source.change = [&model, threads](std::int64_t layer) { return model.change(layer, threads); };
  source.model = lora_facts(model);
  return source;
}

double number_or(const Json& value, double otherwise) {
  return value.is_number() ? value.get<double>() : otherwise;
}

/// Of the heads of one layer and circuit: the median of a number, and the head with the most.
struct Column {
  double median = 0, most = 0;
  std::int64_t head = 0;
};

template <typename Get>
Column column(const std::vector<const Json*>& heads, Get get) {
  Column out;
  std::vector<double> values;
  for (const Json* head : heads) {
    values.push_back(get(*head));
    if (values.size() == 1 || values.back() > out.most) {
      out.most = values.back();
      out.head = head->at("head").get<std::int64_t>();
    }
  }
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  if (n > 0) out.median = n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
  return out;
}

/// "QK 0.031 (h7 0.112)  q 61% k 35% qk 4%  new 12%"
std::string circuit_text(const std::vector<const Json*>& heads) {
  const Column size = column(heads, [](const Json& h) { return number_or(h.at("rel_fro"), 0); });
  std::string text =
      fmt::format("{} {:.4f} (h{} {:.4f})", heads[0]->at("circuit").get<std::string>(), size.median,
                  size.head, size.most);
  const Json& terms = heads[0]->at("terms");
  if (terms.size() <= 3) {
    for (const auto& [name, unused] : terms.items()) {
      const std::string term = name;
      const Column share = column(
          heads, [&](const Json& h) { return number_or(h.at("terms").at(term).at("share"), 0); });
      text += fmt::format(" {} {:.0f}%", term, 100 * share.median);
    }
  }
  const Column inside =
      column(heads, [](const Json& h) { return number_or(h.at("split").at("in_in"), 0); });
  return text + fmt::format(" in {:.0f}%", 100 * inside.median);
}

std::vector<std::string> layer_lines(const Json& entries) {
  std::vector<std::string> lines;
  std::vector<const Json*> group;
  const auto flush = [&] {
    if (!group.empty()) lines.push_back(circuit_text(group));
    group.clear();
  };
  for (const Json& entry : entries) {
    if (!group.empty() && group[0]->at("circuit") != entry.at("circuit")) flush();
    group.push_back(&entry);
  }
  flush();
  return lines;
}

void show_layer(const LayerResult& result, const Json& entries) {
  std::string row = fmt::format("layer {:<4}", result.layer);
  for (const std::string& line : layer_lines(entries)) row += "  " + line;
  // Progress redraws its line in place on a terminal; the row takes its place.
  message((isatty(STDERR_FILENO) ? "\r\033[K" : "") + row);
}

void print_strongest(const Json& result) {
  std::vector<const Json*> heads;
  for (const Json& head : result.at("heads")) heads.push_back(&head);
  const auto size = [](const Json* head) { return number_or(head->at("rel_fro"), 0); };
  std::stable_sort(heads.begin(), heads.end(),
                   [&](const Json* a, const Json* b) { return size(a) > size(b); });
  std::printf(
      "What changed most, |dM|/|M| of a head's circuit (how much of dM lies within what the "
      "head\nread and wrote before; directions that are new on both sides):\n\n");
  std::printf("%6s %5s %-8s %9s %9s %7s %8s %8s\n", "layer", "head", "circuit", "rel_fro",
              "rel_spec", "in_in", "new_new", "cos");
  for (std::size_t i = 0; i < std::min<std::size_t>(heads.size(), 15); ++i) {
    const Json& h = *heads[i];
    std::printf("%6lld %5lld %-8s %9.5f %9.5f %6.1f%% %7.1f%% %8.5f\n",
                static_cast<long long>(h.at("layer").get<std::int64_t>()),
                static_cast<long long>(h.at("head").get<std::int64_t>()),
                h.at("circuit").get<std::string>().c_str(), size(heads[i]),
                number_or(h.at("rel_spec"), 0), 100 * number_or(h.at("split").at("in_in"), 0),
                100 * number_or(h.at("split").at("new_new"), 0), number_or(h.at("cos"), 1));
  }
}

/// Without the base's weights: what the adapter says by itself, and what is missing.
void heads_of_adapter(const HeadsArguments& arguments, const GlobalOptions& globals,
                      const AdaptedModel* model, const std::string& why) {
  const Adapter adapter = open_adapter(arguments.input);
  const Json result = adapter_alone(adapter, model, why);
  const std::filesystem::path out = arguments.out;
  create_folder(out);
  std::string files = "adapter.json, adapter.csv";
  write_file_atomically(out / "adapter.csv", adapter_modules_csv(result));
  if (result.contains("crossed")) {
    write_file_atomically(out / "adapter_crossed.csv", adapter_crossed_csv(result));
    files += ", adapter_crossed.csv";
  }
  write_file_atomically(out / "adapter.json", result.dump() + "\n");
  if (globals.json) {
    std::printf("%s\n", result.dump().c_str());
    return;
  }
  std::printf("The adapter alone. Missing:\n");
  for (const Json& words : result.at("missing")) {
    std::printf("- %s\n", words.get<std::string>().c_str());
  }
  std::printf("\n%-44s %5s %10s %12s %13s\n", "s B A of", "rank", "|s B A|*", "stable rank",
              "entropy rank");
  for (const Json& m : result.at("modules")) {
    std::printf("%-44s %5lld %10.4g %12.2f %13.2f\n", m.at("module").get<std::string>().c_str(),
                static_cast<long long>(m.at("rank").get<std::int64_t>()),
                m.at("fro_raw").get<double>(), m.at("stable_rank").get<double>(),
                m.at("entropy_rank").get<double>());
  }
  std::printf(
      "* Depends on the gauge: heads can trade it between q and k, v and o without any effect.\n");
  message(fmt::format("\nresults in {}: {}", arguments.out, files));
}

/// Decompositions of whole matrices that are made unasked: sum of out in n, see modules_cost().
/// 24 modules of 384 x 384 are 1.4e9 and take about 20 s on a busy core.
constexpr double kCheapModules = 5e9;

/// The other sense of intruders. Says what was done; one line of the summary, or nothing.
void modules(const HeadsArguments& arguments, const AdaptedModel& model,
             const std::vector<std::int64_t>& layers, int threads) {
  const std::filesystem::path out = arguments.out;
  const double cost = modules_cost(model, layers);
  if (arguments.modules == "yes" || (arguments.modules == "auto" && cost <= kCheapModules)) {
    ModulesOptions options;
    options.out = out;
    options.layers = layers;
    const Json result = run_lora_modules(model, lora_facts(model), options, threads);
    message(fmt::format("whole modules in {}: modules.json, modules.csv",
                        format_seconds(result.at("times").at("total_seconds").get<double>())));
    return;
  }
  if (arguments.modules == "auto") {
    message(fmt::format(
        "whole modules are left out: decomposing them takes about {:.0f} times what is done "
        "unasked; --modules yes does it (docs/lora.md states the time)",
        cost / kCheapModules));
  }
}

/// Needs weights unless the adapter alone is all there is.
void heads(const HeadsArguments& arguments, const GlobalOptions& globals) {
  keep_freed_memory();
  const int threads = chosen_threads(globals);
  std::string why;
  const auto base = find_base(open_adapter(arguments.input), arguments.input.base, why);
  if (!base) return heads_of_adapter(arguments, globals, nullptr, why);
  const AdaptedModel model(*base, open_adapter(arguments.input));
  if (!model.has_weights()) {
    const std::string missing = fmt::format("{} has a config.json but no weights", base->string());
    return heads_of_adapter(arguments, globals, &model, missing);
  }
  HeadsOptions options = options_of(arguments, globals, model);
  read_embeddings(arguments, model, threads, options);
  options.on_layer = show_layer;
  const Json result = run_lora_heads(heads_source(model, threads, options.device), options);
  modules(arguments, model, options.layers, threads);
  if (globals.json) {
    std::printf("%s\n", result.dump().c_str());
    return;
  }
  print_strongest(result);
  message(fmt::format("\n{} layers in {}; results in {}: heads.json, heads.csv, heads.safetensors",
                      options.layers.size(),
                      format_seconds(result.at("times").at("total_seconds").get<double>()),
                      arguments.out));
}

void rope(const HeadsArguments& arguments, const GlobalOptions& globals) {
  const int threads = chosen_threads(globals);
  const AdaptedModel model = open_adapted(arguments.input, /*need_weights=*/true);
  HeadsOptions options = options_of(arguments, globals, model);
  options.curve = options.window;
  read_embeddings(arguments, model, threads, options);
  const Json result = run_lora_rope(heads_source(model, threads, options.device), options);
  if (globals.json) {
    std::printf("%s\n", result.dump().c_str());
    return;
  }
  std::printf("|dM|/|M| of QK over the distance of query and key: median over heads\n\n");
  const Json& offsets = result.at("offsets");
  std::printf("%8s %10s\n", "offset", "rel_fro");
  std::size_t next = 0;
  for (std::size_t j = 0; j < offsets.size(); ++j) {
    const auto delta = offsets[j].get<std::int64_t>();
    if (next < kListedOffsets.size() && delta < kListedOffsets[next] && j + 1 < offsets.size())
      continue;
    while (next < kListedOffsets.size() && kListedOffsets[next] <= delta) ++next;
    std::vector<const Json*> all;
    for (const Json& head : result.at("heads")) all.push_back(&head);
    const Column size =
        column(all, [&](const Json& head) { return number_or(head.at("rel_fro")[j], 0); });
    std::printf("%8lld %10.5f\n", static_cast<long long>(delta), size.median);
  }
  message(fmt::format("\nresults in {}: rope.json, rope.csv", arguments.out));
}

void add_options(CLI::App& command, HeadsArguments& arguments) {
  add_lora_input(command, arguments.input);
  command.add_option("--out", arguments.out, "folder for the results")->required();
  command.add_option("--layers", arguments.layers,
                     "layers and ranges, e.g. 0-5,7 (default: those that the adapter changes)");
  command.add_option("--offsets", arguments.offsets,
                     "offsets that rotary circuits are averaged over, query position - key\n"
                     "position: 0:257, 0:257:8 or 0,1,16 (default: 0 to 256, or the context)");
  command.add_flag("--fold-norm", arguments.fold_norm,
                   "fold the input norm into what reads its output, on both sides");
  CLI::Option* file = command.add_option(
      "--second-moment", arguments.second_moment,
      "safetensors file with layers.<L>.second_moment [d, d], the mean of x^T x of\n"
      "what the projections read: directions then count as data has them");
  command
      .add_flag("--embedding-moment", arguments.embedding_moment,
                "without data: layer 0 is weighted by what the embeddings let it read")
      ->excludes(file);
}

}  // namespace

void add_lora_heads(CLI::App& lora, const GlobalOptions& globals) {
  auto arguments = std::make_shared<HeadsArguments>();
  CLI::App* command = lora.add_subcommand(
      "heads",
      "What the adapter does to each head: its patterns QK and messages VO in terms of the base\n"
      "and of what q, k, v and o add, alone and together.\n\n"
      "  subspace lora heads --adapter ADAPTER --base MODEL --out run\n"
      "  subspace lora heads --adapter ADAPTER --out run --layers 0-3 --fold-norm\n\n"
      "A line a layer: median |dM|/|M| over heads (the head with the most), shares of the terms "
      "in\n"
      "dM, how much of dM lies within what the head read and wrote before. In DIR: heads.json,\n"
      "heads.csv and heads.safetensors, and modules.json of whole modules (--modules);\n"
      "docs/lora.md explains every number.\n"
      "Without the base's weights: what the adapter says by itself, and what is missing, in\n"
      "adapter.json and its tables; with the base's config.json alone, head by head.");
  add_options(*command, *arguments);
  command
      ->add_option(
          "--vectors", arguments->vectors,
          "leading singular vectors of every M, M' and dM to keep in heads.safetensors, in\n"
          "the model's space; `lora tokens` finds words near them")
      ->check(CLI::Range(0, 64));
  command->add_flag("--token-copying", arguments->token_copying,
                    "copying of VO also from tokens to tokens, through the base's embeddings");
  command->add_flag("--gain-free", arguments->gain_free,
                    "intruders also of M' - gain M, without what only rescales the head");
  command
      ->add_option(
          "--modules", arguments->modules,
          "auto, yes or no: intruder dimensions of whole modules (q_proj, o_proj, ...), the\n"
          "strong directions of W + s B A that are unlike every one of W, in modules.json\n"
          "and modules.csv. It decomposes each adapted matrix: seconds for a small\n"
          "encoder, minutes for BERT, hours for an 8B model. auto (the default) does it while\n"
          "the sum of out in min(out, in) over these matrices is at most 5e9")
      ->check(CLI::IsMember({"auto", "yes", "no"}));
  command->callback([arguments, &globals] { heads(*arguments, globals); });
}

void add_lora_rope(CLI::App& lora, const GlobalOptions& globals) {
  auto arguments = std::make_shared<HeadsArguments>();
  CLI::App* command = lora.add_subcommand(
      "rope",
      "How the change of each head's patterns depends on the distance of query and key, and which\n"
      "rotary frequencies it edits: fast ones tell positions, slow ones content.\n\n"
      "  subspace lora rope --adapter ADAPTER --out run --offsets 0:257\n\n"
      "In DIR: rope.json and rope.csv.");
  add_options(*command, *arguments);
  command->callback([arguments, &globals] { rope(*arguments, globals); });
}

}  // namespace subspace
