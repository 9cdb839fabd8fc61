#include "train/sweep_plan.h"

#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "nn/config_fields.h"

namespace subspace::train {
namespace {

constexpr std::size_t kMostRuns = 10000;

struct Arm {
  std::string name;
  std::filesystem::path config;
  Json set = Json::object();
};

/// A text for a reader: strings without their quotes.
std::string plain(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string folder_name(const std::string& arm, std::uint64_t seed) {
  std::string name;
  for (const char c : arm) {
    const bool keep = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '-';
    if (keep) {
      name += c;
    } else if (!name.empty() && name.back() != '_') {
      name += '_';
    }
  }
  return fmt::format("{}_seed_{}", name, seed);
}

/// The file of an arm's configuration, which lies beside the sweep's or where a path from there
/// leads.
std::filesystem::path config_of(const Fields& fields, const nn::ConfigFields& in,
                                const std::filesystem::path& folder) {
  const std::string text = fields.string("config");
  std::filesystem::path config = folder / text;
  if (std::filesystem::exists(config)) return config;
  fail(ErrorCode::NotFound,
       "{}: config '{}': no such file ({}); paths are relative to the sweep's file", in.where(),
       text, config.string());
}

std::vector<Arm> read_arms(const Json& json, const nn::ConfigFields& in,
                           const std::filesystem::path& folder) {
  std::vector<Arm> arms;
  if (!json.contains("arms")) {
    if (!json.contains("config")) {
      fail(ErrorCode::NotFound,
           "{}: no field 'config' and no 'arms'; expected the configuration to train", in.where());
    }
    return {{"", config_of(in.fields(), in, folder), Json::object()}};
  }
  for (const Json& entry : json.at("arms")) {
    const Fields fields(entry, in.where() + ": arms");
    Arm arm;
    arm.name = fields.string_or("name", "");
    arm.config = config_of(fields.has("config") ? fields : in.fields(), in, folder);
    if (fields.has("set")) arm.set = fields.object("set").json();
    if (arm.name.empty()) in.contradiction("arms", "every arm needs a name");
    arms.push_back(std::move(arm));
  }
  if (arms.empty()) in.contradiction("arms", "expected at least one");
  return arms;
}

/// Every combination of the grid's values, the last field turning fastest.
std::vector<Json> combinations(const Json& grid, const nn::ConfigFields& in) {
  std::vector<Json> all = {Json::object()};
  for (const auto& [field, values] : grid.items()) {
    if (!values.is_array() || values.empty()) {
      in.contradiction("grid", fmt::format("'{}' expects a list of values", field));
    }
    std::vector<Json> next;
    for (const Json& before : all) {
      for (const Json& value : values) {
        Json now = before;
        now[field] = value;
        next.push_back(std::move(now));
      }
    }
    all = std::move(next);
    if (all.size() > kMostRuns) {
      fail(ErrorCode::Unsupported, "{}: the grid has more than {} combinations", in.where(),
           kMostRuns);
    }
  }
  return all;
}

Json object_of(const nn::ConfigFields& in, const char* name) {
  const auto found = in.fields().object_if(name);
  return found ? found->json() : Json::object();
}

std::vector<std::uint64_t> seeds_of(const Json& json, const nn::ConfigFields& in) {
  if (!json.contains("seeds")) return {0};
  std::vector<std::uint64_t> seeds;
  for (const Json& seed : json.at("seeds")) {
    if (!seed.is_number_unsigned()) in.contradiction("seeds", "expected whole numbers from 0");
    seeds.push_back(seed.get<std::uint64_t>());
  }
  if (seeds.empty()) in.contradiction("seeds", "expected at least one");
  return seeds;
}

void add_sets(std::vector<std::string>& sets, const Json& fields) {
  for (const auto& [name, value] : fields.items()) sets.push_back(name + "=" + value.dump());
}

std::string label(const Arm& arm, const Json& fields) {
  std::string text = arm.name;
  for (const auto& [name, value] : fields.items()) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, plain(value));
  }
  return text.empty() ? arm.config.stem().string() : text;
}

}  // namespace

SweepPlan read_sweep(const std::filesystem::path& file) {
  const Json json = read_json_file(file);
  nn::ConfigFields in(json, file.string());
  SweepPlan plan;
  plan.title = in.fields().string_or("title", file.stem().string());
  plan.question = in.fields().string_or("question", "");
  const std::string measure = in.choice_or("measure", "training", {"training", "layer_time"});
  plan.measure =
      measure == "training" ? SweepPlan::Measure::training : SweepPlan::Measure::layer_time;
  plan.alignment = in.boolean_or("alignment", false);
  in.known({"title", "question", "config", "arms", "grid", "set", "seeds"});
  in.finish_object("a sweep", "docs/training.md");
  const auto arms = read_arms(json, in, file.parent_path());
  const Json common = object_of(in, "set"), grid = object_of(in, "grid");
  for (const auto& entry : grid.items()) plan.grid_fields.push_back(entry.key());
  const auto points = combinations(grid, in);
  const auto seeds = seeds_of(json, in);
  if (arms.size() * points.size() * seeds.size() > kMostRuns) {
    fail(ErrorCode::Unsupported, "{}: {} runs; at most {}", in.where(),
         arms.size() * points.size() * seeds.size(), kMostRuns);
  }
  for (const Arm& arm : arms) {
    for (const Json& point : points) {
      const std::string name = label(arm, point);
      if (std::count(plan.arms.begin(), plan.arms.end(), name) > 0) {
        in.contradiction("arms", fmt::format("two are called '{}'", name));
      }
      plan.arms.push_back(name);
      for (const std::uint64_t seed : seeds) {
        std::vector<std::string> sets;
        add_sets(sets, common);
        add_sets(sets, arm.set);
        add_sets(sets, point);
        sets.push_back(fmt::format("seed={}", seed));
        plan.runs.push_back({name, folder_name(name, seed), point, seed,
                             read_experiment(arm.config, sets, "", file.string())});
      }
    }
  }
  return plan;
}

}  // namespace subspace::train
