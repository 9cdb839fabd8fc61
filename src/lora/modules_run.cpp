#include "lora/modules_run.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <future>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "base/version.h"
#include "lora/module_intruders.h"

namespace subspace {
namespace {

Json finite(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

Json list_of(const at::Tensor& x, std::int64_t most) {
  Json out = Json::array();
  for (std::int64_t j = 0; j < std::min(most, x.size(0)); ++j) {
    if (x.scalar_type() == at::kLong) {
      out.push_back(x[j].item<std::int64_t>());
    } else {
      out.push_back(finite(x[j].item<double>()));
    }
  }
  return out;
}

Json side_json(const IntruderSide& side, const RandomSide* random, const ModulesOptions& options) {
  Json counts = Json::array();
  for (const double cosine : options.thresholds) counts.push_back(intruders(side, cosine));
  Json json = {{"similarity", list_of(side.similarity, options.top)},
               {"nearest", list_of(side.nearest, options.top)},
               {"inside", list_of(side.inside, options.top)},
               {"intruders", std::move(counts)},
               {"null", nullptr}};
  if (random) {
    json["null"] = {{"similarity", list_of(random->similarity, options.top)},
                    {"intruders", random->intruders}};
  }
  return json;
}

Json module_json(const AdaptedModule& module, const ModuleIntruders& found,
                 const RandomUpdates* random, const ModulesOptions& options) {
  const double largest = found.base.numel() > 0 ? found.base[0].item<double>() : 0;
  const bool low_rank = found.delta.defined() && found.delta.numel() > 0;
  Json json = {
      {"layer", module.layer},
      {"module", module.path},
      {"matrices", module.matrices},
      {"kind", module.kind},
      {"out", module.out},
      {"in", module.in},
      {"rank", module.rank},
      {"alpha", module.alpha},
      {"scale", module.scale},
      {"base_rank", found.base_rank},
      {"fro", {finite(found.fro_base), finite(found.fro_delta)}},
      {"rel_fro", finite(found.fro_delta / found.fro_base)},
      {"rel_spec", low_rank ? finite(found.delta[0].item<double>() / largest) : Json(nullptr)}};
  json["singular"] = {
      {"base", list_of(found.base, options.top)},
      {"adapted", list_of(found.adapted, options.top)},
      {"delta", found.delta.defined() ? list_of(found.delta, options.top) : Json(nullptr)}};
  json["output"] = side_json(found.output, random ? &random->output : nullptr, options);
  json["input"] = side_json(found.input, random ? &random->input : nullptr, options);
  return json;
}

Json one_module(const AdaptedModule& module, const ModuleWeights& weights, std::uint64_t seed,
                const ModulesOptions& options) {
  const ModuleSpectrum base(weights.base, options.top);
  if (weights.adapted.defined()) {
    return module_json(module, base.with(weights.adapted), nullptr, options);
  }
  const ModuleIntruders found = base.with(weights.change);
  const RandomUpdates random = base.random(found.delta, options.thresholds, options.draws, seed);
  return module_json(module, found, &random, options);
}

std::string cell(const Json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer()) return std::to_string(value.get<std::int64_t>());
  return fmt::format("{:.9g}", value.get<double>());
}

/// `count` cells, empty beyond the list's end and where there is no list.
void cells(std::string& row, const Json& list, std::size_t count) {
  for (std::size_t j = 0; j < count; ++j) {
    row += ',';
    if (list.is_array() && j < list.size()) row += cell(list[j]);
  }
}

/// Numbers in a matrix up to which modules are worked on side by side, a thread each: threads
/// within a small decomposition wait more than they work. Larger ones have all threads, and the
/// memory, to themselves.
constexpr std::int64_t kSmallModule = std::int64_t{1} << 22;

}  // namespace

double modules_cost(const AdaptedModel& model, const std::vector<std::int64_t>& layers) {
  double cost = 0;
  for (const std::int64_t layer : layers) {
    for (const AdaptedModule& module : adapted_modules(model, layer)) {
      const auto out = static_cast<double>(module.out), in = static_cast<double>(module.in);
      cost += out * in * std::min(out, in) * (module.kind == "lora" ? 1 : 2);
    }
  }
  return cost;
}

Json run_lora_modules(const AdaptedModel& model, const Json& facts, const ModulesOptions& options,
                      int threads) {
  create_folder(options.out);
  const auto start = std::chrono::steady_clock::now();
  // Another seed a module: those of one shape would all be compared with the same few updates.
  std::vector<std::pair<AdaptedModule, std::uint64_t>> all;
  for (const std::int64_t layer : options.layers) {
    std::uint64_t seed = options.seed + (static_cast<std::uint64_t>(layer) << 8);
    for (AdaptedModule& module : adapted_modules(model, layer)) {
      all.emplace_back(std::move(module), seed++);
    }
  }
  Json modules = Json::array();
  Progress progress("whole module", static_cast<std::int64_t>(all.size()));
  const bool small = std::all_of(all.begin(), all.end(), [](const auto& one) {
    return one.first.out * one.first.in <= kSmallModule;
  });
  std::deque<std::future<Json>> running;
  const auto take = [&] {
    modules.push_back(running.front().get());
    running.pop_front();
    const AdaptedModule& module = all[modules.size() - 1].first;
    progress.step(fmt::format("{} [{}, {}]", module.path, module.out, module.in));
  };
  for (const auto& [module, seed] : all) {
    check_interrupted("modules.json is not written before the last module is done");
    auto work = [&module = module, seed = seed, &options, small,
                 weights = module_weights(model, module, threads)] {
      if (small) at::set_num_threads(1);  // of this thread alone
      return one_module(module, weights, seed, options);
    };
    running.push_back(
        std::async(small ? std::launch::async : std::launch::deferred, std::move(work)));
    while (running.size() >= (small ? static_cast<std::size_t>(std::max(1, threads)) : 1)) take();
  }
  while (!running.empty()) take();
  at::set_num_threads(threads);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  Json json = {
      {"format", "subspace-lora-modules"},
      {"version", 1},
      {"program", {{"version", version()}, {"commit", git_commit()}, {"torch", TORCH_VERSION}}},
      {"model", facts},
      {"options",
       {{"top", options.top},
        {"thresholds", options.thresholds},
        {"draws", options.draws},
        {"same_value", kSameValue}}},
      {"times", {{"total_seconds", seconds.count()}}},
      {"modules", std::move(modules)}};
  write_file_atomically(options.out / "modules.csv", modules_csv(json));
  write_file_atomically(options.out / "modules.json", json.dump() + "\n");
  return json;
}

std::string modules_csv(const Json& json) {
  const Json& thresholds = json.at("options").at("thresholds");
  const auto top = json.at("options").at("top").get<std::size_t>();
  static constexpr const char* kFields[] = {"layer", "module", "kind",    "out",     "in",
                                            "rank",  "scale",  "rel_fro", "rel_spec"};
  std::string text;
  for (const char* field : kFields) text += fmt::format("{},", field);
  text += "side";
  for (const char* name : {"intruders", "null_intruders"}) {
    for (const Json& cosine : thresholds) {
      text += fmt::format(",{}_{:g}", name, cosine.get<double>());
    }
  }
  for (const char* name : {"similarity", "null_similarity", "nearest", "value"}) {
    for (std::size_t j = 1; j <= top; ++j) text += fmt::format(",{}_{}", name, j);
  }
  text += '\n';
  for (const Json& module : json.at("modules")) {
    for (const char* name : {"output", "input"}) {
      for (const char* field : kFields) text += cell(module.at(field)) + ",";
      text += name;
      const Json& side = module.at(name);
      const Json none, &null = side.at("null");
      cells(text, side.at("intruders"), thresholds.size());
      cells(text, null.is_null() ? none : null.at("intruders"), thresholds.size());
      cells(text, side.at("similarity"), top);
      cells(text, null.is_null() ? none : null.at("similarity"), top);
      cells(text, side.at("nearest"), top);
      cells(text, module.at("singular").at("adapted"), top);
      text += '\n';
    }
  }
  return text;
}

}  // namespace subspace
