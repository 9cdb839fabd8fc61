#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cstdio>

#include "base/atomic_file.h"
#include "base/error.h"
#include "causal/causal_run.h"
#include "cli/commands.h"
#include "cli/lora.h"
#include "train/induction.h"

namespace subspace {
namespace {

struct CausalArguments {
  LoraInput input;
  std::string out, data, edges, dtype = "float64";
  std::int64_t batch_size = 128, batches = 0, orders = 8, seed = 0;
};

at::ScalarType dtype_of(const std::string& name) {
  return name == "float64" ? at::kDouble : at::kFloat;
}

struct Opened {
  Json facts;
  std::vector<LayerChange> changes;
  std::unique_ptr<GatedModel> model;
};

Opened open(const LoraInput& input, const std::string& dtype, int threads) {
  const AdaptedModel adapted = open_adapted(input, /*need_weights=*/true);
  Opened out;
  out.facts = lora_facts(adapted);
  for (std::int64_t i = 0; i < adapted.family().shape().layers; ++i) {
    out.changes.push_back(adapted.change(i, threads));
    out.changes.back().index = i;
  }
  out.model = std::make_unique<GatedModel>(adapted.checkpoint().folder(), out.changes,
                                           dtype_of(dtype), threads);
  return out;
}

Mode mode_of(const std::string& name, const std::string& where) {
  for (const Mode mode : kModes) {
    if (name == mode_name(mode)) return mode;
  }
  fail(ErrorCode::InvalidValue, "{}: mode '{}'; expected Q, K or V", where, name);
}

std::int64_t place(const Json& pair, std::size_t which, std::int64_t end,
                   const std::string& where) {
  if (!pair.is_array() || pair.size() != 2 || !pair[which].is_number_integer() ||
      pair[which].get<std::int64_t>() < 0 || pair[which].get<std::int64_t>() >= end) {
    fail(ErrorCode::InvalidValue, "{}: {} is no [layer, head] of this model", where, pair.dump());
  }
  return pair[which].get<std::int64_t>();
}

/// "all", or compose.json: its pairs in their order, by rho.
std::vector<Connection> connections(const std::string& edges, const GatedModel& model) {
  std::vector<Connection> out;
  if (edges == "all") {
    for (std::int64_t w = 0; w < model.layers(); ++w) {
      for (std::int64_t r = w + 1; r < model.layers(); ++r) {
        for (std::int64_t i = 0; i < model.heads() * model.heads(); ++i) {
          for (const Mode mode : kModes) {
            out.push_back({w, i / model.heads(), r, i % model.heads(), mode});
          }
        }
      }
    }
    return out;
  }
  const Json json = read_json_file(edges);
  const Fields fields(json, edges);
  if (!fields.has("pairs") || !json.at("pairs").is_array()) {
    fail(ErrorCode::NotFound, "{}: no list 'pairs'; expected compose.json of `lora compose`",
         edges);
  }
  for (const Json& pair : json.at("pairs")) {
    const Fields one(pair, edges + ": pairs");
    if (!one.has("w") || !one.has("r")) fail(ErrorCode::NotFound, "{}: no w and r", one.where());
    out.push_back({place(pair.at("w"), 0, model.layers(), edges),
                   place(pair.at("w"), 1, model.heads(), edges),
                   place(pair.at("r"), 0, model.layers(), edges),
                   place(pair.at("r"), 1, model.heads(), edges),
                   mode_of(one.string("mode"), edges)});
    if (out.back().writer >= out.back().reader) {
      fail(ErrorCode::InvalidValue, "{}: {} does not come before {}", edges, pair.at("w").dump(),
           pair.at("r").dump());
    }
  }
  return out;
}

void print_causes(const Json& result) {
  auto estimate = [](const Json& value) {
    return fmt::format("{:8.4f} [{:.4f}, {:.4f}]", value.at("mean").get<double>(),
                       value.at("ci")[0].get<double>(), value.at("ci")[1].get<double>());
  };
  const Json& loss = result.at("loss");
  std::printf("loss, nats a predicted token: base %s, with the adapter %s\n\n",
              estimate(loss.at("base")).c_str(), estimate(loss.at("tuned")).c_str());
  std::printf("%-10s %-34s %-34s %s\n", "circuit", "Shapley", "left out", "by itself");
  for (const Json& group : result.at("groups")) {
    std::printf(
        "%-10s %-34s %-34s %s\n",
        fmt::format("L{} {}", group.at("layer").get<int>(), group.at("circuit").get<std::string>())
            .c_str(),
        estimate(group.at("shapley")).c_str(), estimate(group.at("loo")).c_str(),
        estimate(group.at("aoi")).c_str());
  }
}

void measure(const CausalArguments& arguments, const GlobalOptions& globals) {
  const int threads = chosen_threads(globals);
  const Opened opened = open(arguments.input, arguments.dtype, threads);
  train::Settings settings;
  settings.batch_size = arguments.batch_size;
  const auto batches = train::open_folder(arguments.data, opened.model->config(), settings);
  CausalOptions options;
  options.orders = arguments.orders;
  options.batches = arguments.batches;
  options.seed = static_cast<std::uint64_t>(arguments.seed);
  options.threads = threads;
  if (!arguments.edges.empty()) options.edges = connections(arguments.edges, *opened.model);
  Json result = causal_effects(*opened.model, *batches, opened.changes, options);
  result["model"] = opened.facts;
  const std::filesystem::path out = arguments.out;
  create_folder(out);
  write_file_atomically(out / "causal.csv", causal_csv(result));
  write_file_atomically(out / "causal.json", result.dump(1) + "\n");
  if (globals.json) {
    std::printf("%s\n", result.dump().c_str());
  } else {
    print_causes(result);
    std::printf("%s\n", (out / "causal.json").c_str());
  }
}

struct LoraForwardArguments {
  LoraInput input;
  std::string tokens, gates, out, dtype = "float64";
};

/// A list of {layer, term, head, gate} over gates of `default` (1), and of edges.
void read_gates(const std::string& file, const GatedModel& model, at::Tensor& gates,
                std::vector<EdgeGate>& edges) {
  const Json json = read_json_file(file);
  const Fields fields(json, file);
  gates.fill_(fields.number_or("default", 1));
  for (const Json& entry : json.value("gates", Json::array())) {
    const Fields one(entry, file + ": gates");
    const std::string name = one.string("term");
    const auto* term = std::ranges::find(kTermNames, name);
    if (term == kTermNames.end()) {
      fail(ErrorCode::InvalidValue, "{}: term '{}'; expected q, k, qk, v, o or vo", one.where(),
           name);
    }
    gates[one.int_in("layer", 0, model.layers() - 1)][term - kTermNames.begin()]
         [one.int_in("head", 0, model.heads() - 1)] = one.number("gate");
  }
  for (const Json& entry : json.value("edges", Json::array())) {
    const Fields one(entry, file + ": edges");
    const std::string name = one.string("route");
    const auto* route = std::ranges::find(kRouteNames, name);
    if (route == kRouteNames.end()) {
      fail(ErrorCode::InvalidValue, "{}: route '{}'; expected bn, nb or nn", one.where(), name);
    }
    EdgeGate edge;
    edge.reader = one.int_in("reader", 0, model.layers() - 1);
    edge.writer = one.int_in("writer", 0, edge.reader - 1);
    edge.writer_head = one.int_in("writer_head", 0, model.heads() - 1);
    edge.reader_head = one.int_in("reader_head", 0, model.heads() - 1);
    edge.mode = mode_of(one.string("mode"), one.where());
    edge.route = static_cast<Route>(route - kRouteNames.begin());
    edge.gate = one.number("gate");
    edges.push_back(edge);
  }
}

void lora_forward(const LoraForwardArguments& arguments, const GlobalOptions& globals) {
  const at::NoGradGuard no_gradient;
  const Opened opened = open(arguments.input, arguments.dtype, chosen_threads(globals));
  const GatedModel& model = *opened.model;
  const SafetensorsFile file(arguments.tokens);
  const at::Tensor tokens = nn::read_tensor(file, "input_ids").to(at::kLong);
  if (tokens.dim() != 2 || tokens.numel() == 0 || tokens.min().item<std::int64_t>() < 0 ||
      tokens.max().item<std::int64_t>() >= model.config().vocab) {
    fail(ErrorCode::InvalidValue, "{}: input_ids must be [rows, tokens] of numbers below {}",
         arguments.tokens, model.config().vocab);
  }
  at::Tensor gates = model.gates(1);
  std::vector<EdgeGate> edges;
  if (!arguments.gates.empty()) read_gates(arguments.gates, model, gates, edges);
  nn::write_tensors(arguments.out, {{"logits", model.logits(model.hidden(tokens, gates, edges))}});
  std::printf("%s\n", arguments.out.c_str());
}

void add_dtype(CLI::App& command, std::string& dtype) {
  command.add_option("--dtype", dtype, "weights and arithmetic")
      ->check(CLI::IsMember({"float32", "float64"}));
}

}  // namespace

void add_lora_causal(CLI::App& lora, const GlobalOptions& globals) {
  auto arguments = std::make_shared<CausalArguments>();
  CLI::App* command = lora.add_subcommand(
      "causal",
      "What each part of an adapter does to the loss: circuits, heads, terms and connections are\n"
      "switched off (and on) one by one in an exact forward pass of a small model.\n\n"
      "  subspace lora causal --base MODEL --adapter ADAPTER --data DIR --out DIR\n"
      "  subspace lora causal ... --edges OUT/compose.json      the connections it ranks "
      "highest\n\n"
      "Writes causal.json and causal.csv (docs/lora-causal.md). Models: llama and\n"
      "subspace_decoder, small enough for many passes.");
  add_lora_input(*command, arguments->input);
  command->add_option("--data", arguments->data, "folder of subspace.prepare, or with task.json")
      ->required();
  command->add_option("--out", arguments->out, "folder of the results")->required();
  command->add_option("--edges", arguments->edges,
                      "compose.json, or `all`: connections to withhold");
  command->add_option("--batch-size", arguments->batch_size, "rows a pass")->check(whole_from(1));
  command->add_option("--batches", arguments->batches, "held-out passes used (0: all)")
      ->check(CLI::NonNegativeNumber);
  command
      ->add_option("--orders", arguments->orders, "random orders of heads (0: no Shapley values)")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--seed", arguments->seed, "of orders and intervals")
      ->check(CLI::NonNegativeNumber);
  add_dtype(*command, arguments->dtype);
  command->callback([arguments, &globals] { measure(*arguments, globals); });

  auto pass = std::make_shared<LoraForwardArguments>();
  CLI::App* one = lora.add_subcommand(
      "forward",
      "Logits of a model with an adapter whose terms are gated.\n"
      "FILE holds input_ids [rows, tokens]; GATES is JSON: {\"default\": 1, \"gates\": [{layer, "
      "term,\nhead, gate}], \"edges\": [{writer, writer_head, reader, reader_head, mode, route, "
      "gate}]}.");
  add_lora_input(*one, pass->input);
  one->add_option("--input", pass->tokens, "safetensors file to read")->required();
  one->add_option("--gates", pass->gates, "JSON file; left out: all gates 1");
  one->add_option("--out", pass->out, "safetensors file to write")->required();
  add_dtype(*one, pass->dtype);
  one->callback([pass, &globals] { lora_forward(*pass, globals); });
}

}  // namespace subspace
