#include "report/training_run.h"

#include <algorithm>
#include <fstream>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace subspace {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLogged[] = {"step", "tokens",    "seconds",          "loss",
                                   "lr",   "grad_norm", "tokens_per_second"};
constexpr const char* kEvaluated[] = {"loss", "accuracy", "perplexity"};

Json columns(const auto& names) {
  Json out = Json::object();
  for (const char* name : names) out[name] = Json::array();
  return out;
}

/// Numbers of metrics.jsonl, a column a field.
class Metrics {
 public:
  explicit Metrics(const fs::path& path) : path_(path) {
    std::ifstream stream(path);
    if (!stream) {
      fail(ErrorCode::NotFound, "{}: not there; a run of `subspace train` writes it",
           path.string());
    }
    evaluations = columns(kEvaluated);
    evaluations["step"] = evaluations["tokens"] = evaluations["seconds"] = Json::array();
    std::vector<std::string> lines;
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    for (std::size_t i = 0; i < lines.size(); ++i) read(lines[i], i + 1, i + 1 == lines.size());
    if (steps.at("step").empty()) {
      fail(ErrorCode::InvalidValue, "{}: no logged step yet; let the run come to its first",
           path.string());
    }
  }

  Json steps = columns(kLogged), evaluations;

 private:
  void read(const std::string& line, std::size_t number, bool last) {
    const std::string where = fmt::format("{}: line {}", path_.string(), number);
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded() && last) return;
    if (json.is_discarded()) {
      fail(ErrorCode::InvalidFormat, "{}: no JSON: '{}'", where, line.substr(0, 60));
    }
    const Fields fields(json, where);
    const std::int64_t step = fields.int_in("step", 0, INT64_MAX);
    if (const auto found = fields.object_if("eval")) {
      evaluations["step"].push_back(step);
      for (const char* name : {"tokens", "seconds"}) {
        evaluations[name].push_back(steps.at(name).empty() ? Json(0) : steps.at(name).back());
      }
      for (const char* name : kEvaluated) {
        evaluations[name].push_back(found->has(name) ? Json(found->number(name)) : Json());
      }
      return;
    }
    for (const char* name : kLogged) steps[name].push_back(fields.number(name));
    if (!(steps["step"].size() < 2 || steps["step"][steps["step"].size() - 2] < step)) {
      fail(ErrorCode::InvalidValue, "{}: field 'step' is {}; expected more than in the line before",
           where, step);
    }
  }

  fs::path path_;
};

/// Every k-th value from the end, so that the last is among them.
void thin(Json& table, std::size_t most) {
  const std::size_t count = table.at("step").size();
  const std::size_t every = (count + most - 1) / most;
  if (every < 2) return;
  for (auto& [name, column] : table.items()) {
    Json kept = Json::array();
    for (std::size_t i = (count - 1) % every; i < count; i += every) kept.push_back(column[i]);
    column = std::move(kept);
  }
}

std::optional<std::int64_t> count_parameters(const fs::path& folder) {
  fs::path file = folder / "model.safetensors";
  std::error_code status;
  if (!fs::exists(file, status)) {
    std::int64_t last = -1;
    for (const auto& entry : fs::directory_iterator(folder / "checkpoints", status)) {
      const std::string name = entry.path().filename().string();
      const bool number = !name.empty() && name.size() < 18 &&
                          name.find_first_not_of("0123456789") == std::string::npos;
      if (number) last = std::max<std::int64_t>(last, std::stoll(name));
    }
    if (last < 0) return std::nullopt;
    file = folder / "checkpoints" / std::to_string(last) / "model.safetensors";
    if (!fs::exists(file, status)) return std::nullopt;
  }
  const SafetensorsFile weights(file);
  std::int64_t count = 0;
  for (const auto& [name, info] : weights.header().tensors) count += info.elements();
  return count;
}

std::string name_of(const fs::path& folder) {
  const fs::path whole = fs::absolute(folder).lexically_normal();
  const fs::path own = whole.filename().empty() ? whole.parent_path() : whole;
  const bool is_seed = without_seed(own.filename().string()).empty();
  return (is_seed ? own.parent_path() : own).filename().string();
}

}  // namespace

std::string without_seed(const std::string& name) {
  const auto digits = name.find_last_not_of("0123456789");
  if (digits == std::string::npos || digits + 1 == name.size()) return name;
  std::string stem = name.substr(0, digits + 1);
  auto drop = [&](const std::string& end) {
    if (stem.ends_with(end)) stem.resize(stem.size() - end.size());
  };
  if (!stem.ends_with("seed_") && !stem.ends_with("seed-") && !stem.ends_with("seed")) return name;
  drop("_");
  drop("-");
  drop("seed");
  drop("_");
  drop("-");
  return stem;
}

TrainingRun read_training_run(const fs::path& folder, std::size_t most) {
  const fs::path path = folder / "run.json";
  const Json json = read_json_file(path);
  const Fields fields(json, path.string());
  TrainingRun run;
  run.folder = folder;
  run.name = name_of(folder);
  run.model = fields.object("model").json();
  const Fields train = fields.object("train");
  run.seed = train.int_in("seed", 0, INT64_MAX);
  run.train = train.json();
  run.train.erase("seed");
  run.data = fields.string("data");
  run.dtype = fields.string_or("dtype", "");
  run.device = fields.string_or("device", "");
  if (!fields.has("adapter")) run.base = fields.string_or("base", "");
  run.parameters = count_parameters(folder);
  Metrics metrics(folder / "metrics.jsonl");
  thin(metrics.steps, most);
  run.steps = std::move(metrics.steps);
  run.evaluations = std::move(metrics.evaluations);
  return run;
}

}  // namespace subspace
