#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

#include "cli/lora.h"

namespace subspace {
namespace {

/// Frobenius norms of one module. Of A and B alone they depend on the gauge (A -> N A, B -> B N^-1
/// leaves B A as it is); that of s B A does not, but heads can still trade it between q and k, v
/// and o.
Json norms(const Adapter& adapter, const AdapterModule& module) {
  const at::Tensor a = adapter.a(module).flatten(1), b = adapter.b(module).flatten(1);
  const double product =
      at::sum(at::matmul(a, a.t()) * at::matmul(b.t(), b)).clamp_min(0).sqrt().item<double>();
  return {
      {"update", product},
      {"raw_gauge_dependent", {{"a", a.norm().item<double>()}, {"b", b.norm().item<double>()}}}};
}

std::string kind(const AdapterConfig& config) {
  std::string name = config.rslora ? "rsLoRA" : "LoRA";
  if (config.dora) name = config.rslora ? "DoRA (rsLoRA scale)" : "DoRA";
  return name;
}

Json base_facts(const AdaptedModel& model) {
  const ModelShape& shape = model.family().shape();
  return {{"folder", model.checkpoint().folder().string()},
          {"weights", model.has_weights()},
          {"family", shape.family},
          {"model_type", shape.model_type},
          {"attention", shape.attention},
          {"layers", shape.layers},
          {"hidden_size", shape.hidden_size},
          {"heads", shape.heads},
          {"kv_groups", shape.kv_groups}};
}

Json module_facts(const Adapter& adapter, const std::string& path, const AdapterModule& module) {
  Json facts = {{"module", module.path}, {"layer", nullptr},     {"matrices", Json::array()},
                {"rank", module.rank},   {"in", module.in},      {"out", module.out},
                {"alpha", module.alpha}, {"scale", module.scale}};
  if (const std::int64_t layer = layer_in_path(path); layer >= 0) facts["layer"] = layer;
  facts["norms"] = norms(adapter, module);
  return facts;
}

/// Fills in which layer, and which of its matrices, each module is in the base.
void place(const AdaptedModel& model, const std::map<std::string, std::size_t>& at, Json& modules,
           Json& result) {
  std::set<std::int64_t> layers;
  for (const auto& touched : model.touched()) {
    layers.insert(touched.layer);
    for (const auto& [matrix, path] : model.cut_from(touched.layer)) {
      const auto found = at.find(path);
      if (found == at.end()) continue;
      modules[found->second]["layer"] = touched.layer;
      modules[found->second]["matrices"].push_back(matrix);
    }
  }
  result["layers"] = layers;
  result["outside_attention"] = model.outside();
}

Json adapter_facts(const Adapter& adapter) {
  const AdapterConfig& config = adapter.config();
  return {{"adapter", adapter.folder().string()},
          {"type", kind(config)},
          {"base_model_name_or_path", config.base_model},
          {"peft_version", config.peft_version},
          {"task_type", config.task_type},
          {"rank", config.rank},
          {"alpha", config.alpha},
          {"scale", config.scale_of("", config.rank)},
          {"bias", config.bias},
          {"target_modules", config.target_modules},
          {"modules_to_save", config.modules_to_save},
          {"parameters", adapter.parameters()},
          {"whole_parameters", adapter.whole_parameters()}};
}

Json inspect(const LoraInput& input) {
  const Adapter adapter = open_adapter(input);
  std::string why;
  const auto folder = find_base(adapter, input.base, why);
  Json modules = Json::array();
  std::map<std::string, std::size_t> at;
  for (const auto& [path, module] : adapter.modules()) {
    at[path] = modules.size();
    modules.push_back(module_facts(adapter, path, module));
  }
  Json result = adapter_facts(adapter);
  if (folder) {
    const AdaptedModel model(*folder, open_adapter(input));
    result["base"] = base_facts(model);
    place(model, at, modules, result);
    result["notes"] = model.notes();
  } else {
    result["base"] = nullptr;
    result["base_missing"] = why;
    std::set<std::int64_t> layers;
    for (const Json& module : modules) {
      if (module.at("layer").is_number()) layers.insert(module.at("layer").get<std::int64_t>());
    }
    result["layers"] = layers;
    result["notes"] = adapter.notes();
  }
  Json whole = Json::array();
  for (const auto& [path, key] : adapter.whole()) whole.push_back(key);
  result["saved_whole"] = whole;
  result["modules"] = std::move(modules);
  return result;
}

/// "0-5, 7"
std::string ranges(const std::set<std::int64_t>& numbers) {
  std::vector<std::string> parts;
  for (auto it = numbers.begin(); it != numbers.end();) {
    const std::int64_t first = *it;
    std::int64_t last = first;
    while (++it != numbers.end() && *it == last + 1) ++last;
    parts.push_back(first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last));
  }
  return parts.empty() ? "-" : fmt::format("{}", fmt::join(parts, ","));
}

/// Modules that differ in nothing but their layer, in one row.
struct Row {
  std::set<std::int64_t> layers;
  double least = 0, most = 0;
  std::int64_t count = 0;
};

std::string last_words(const std::string& path) {
  const auto last = path.rfind('.');
  const auto before = last == std::string::npos || last == 0 ? last : path.rfind('.', last - 1);
  return before == std::string::npos ? path : path.substr(before + 1);
}

std::string list(const Json& words) {
  std::vector<std::string> all = words.get<std::vector<std::string>>();
  return all.empty() ? "-" : fmt::format("{}", fmt::join(all, ","));
}

void print_modules(const Json& modules) {
  std::vector<std::pair<std::string, Row>> rows;
  for (const Json& module : modules) {
    const std::string title =
        fmt::format("{:<28} {:<8} {:>5} {:>7} {:>7} {:>9.4g} {:>9.4g}",
                    last_words(module.at("module").get<std::string>()), list(module.at("matrices")),
                    module.at("rank").get<std::int64_t>(), module.at("in").get<std::int64_t>(),
                    module.at("out").get<std::int64_t>(), module.at("alpha").get<double>(),
                    module.at("scale").get<double>());
    auto found =
        std::find_if(rows.begin(), rows.end(), [&](const auto& row) { return row.first == title; });
    if (found == rows.end()) found = rows.insert(rows.end(), {title, Row{}});
    Row& row = found->second;
    const double norm = module.at("norms").at("update").get<double>();
    row.least = row.count == 0 ? norm : std::min(row.least, norm);
    row.most = row.count == 0 ? norm : std::max(row.most, norm);
    ++row.count;
    if (module.at("layer").is_number()) row.layers.insert(module.at("layer").get<std::int64_t>());
  }
  std::printf("\n%-28s %-8s %5s %7s %7s %9s %9s  %-10s %s\n", "module", "is", "rank", "in", "out",
              "alpha", "scale", "layers", "|s B A|*");
  for (const auto& [title, row] : rows) {
    std::printf("%s  %-10s %.4g", title.c_str(), ranges(row.layers).c_str(), row.least);
    if (row.count > 1) std::printf(" to %.4g", row.most);
    std::printf("\n");
  }
  std::printf(
      "* Depends on the gauge: heads can trade it between q and k, v and o without any effect.\n"
      "  `lora heads` has sizes that do not.\n");
}

void print_adapter(const Json& r) {
  auto line = [](const char* name, const std::string& value) {
    if (!value.empty()) std::printf("%-16s %s\n", name, value.c_str());
  };
  auto text = [&](const char* key) { return r.at(key).get<std::string>(); };
  line("adapter", text("adapter"));
  line("type",
       text("type") + (text("peft_version").empty() ? "" : ", by PEFT " + text("peft_version")));
  line("made for", text("base_model_name_or_path"));
  if (const Json& base = r.at("base"); base.is_null()) {
    line("base", "missing: " + text("base_missing"));
  } else {
    line("base",
         fmt::format("{} ({}, {}, {} layers of {} heads, {} key/value heads){}",
                     base.at("folder").get<std::string>(), base.at("model_type").get<std::string>(),
                     base.at("attention").get<std::string>(), base.at("layers").get<std::int64_t>(),
                     base.at("heads").get<std::int64_t>(), base.at("kv_groups").get<std::int64_t>(),
                     base.at("weights").get<bool>() ? "" : ", its configuration alone"));
  }
  line("rank, alpha", fmt::format("{}, {:g}: scale {:.6g}", r.at("rank").get<std::int64_t>(),
                                  r.at("alpha").get<double>(), r.at("scale").get<double>()));
  line("targets", list(r.at("target_modules")));
  line("layers", ranges(r.at("layers").get<std::set<std::int64_t>>()));
  line("parameters", fmt::format("{} in {} modules{}", r.at("parameters").get<std::int64_t>(),
                                 r.at("modules").size(),
                                 r.at("saved_whole").empty()
                                     ? ""
                                     : fmt::format(", {} more in {} tensor(s) saved whole",
                                                   r.at("whole_parameters").get<std::int64_t>(),
                                                   r.at("saved_whole").size())));
  for (const Json& note : r.at("notes")) line("note", note.get<std::string>());
  if (!r.at("modules").empty()) print_modules(r.at("modules"));
}

}  // namespace

Json lora_facts(const AdaptedModel& model) {
  Json facts = adapter_facts(model.adapter());
  facts["base"] = base_facts(model);
  std::set<std::int64_t> layers;
  for (const auto& touched : model.touched()) layers.insert(touched.layer);
  facts["layers"] = layers;
  facts["outside_attention"] = model.outside();
  facts["notes"] = model.notes();
  return facts;
}

void add_lora_inspect(CLI::App& lora, const GlobalOptions& globals) {
  auto input = std::make_shared<LoraInput>();
  CLI::App* command = lora.add_subcommand(
      "inspect",
      "What an adapter is: type, rank, scale, modules and layers, and whether it fits its base.\n\n"
      "  subspace lora inspect --adapter ./my-adapter\n"
      "  subspace --json lora inspect --adapter org/name --base ./base | jq .modules\n\n"
      "Checks every tensor (shapes against configuration and base, finite numbers). Works without\n"
      "the base, and says what is missing then.");
  add_lora_input(*command, *input);
  command->callback([input, &globals] {
    chosen_threads(globals);
    const Json result = inspect(*input);
    if (globals.json) {
      std::printf("%s\n", result.dump().c_str());
    } else {
      print_adapter(result);
    }
  });
}

}  // namespace subspace
