#include "experts/run_use.h"

#include <fstream>

#include "base/error.h"

namespace subspace::experts {
namespace {

constexpr std::size_t kMostLines = 400;

struct Line {
  Json json;
  std::string where;
};

std::vector<Line> lines_with_experts(const std::filesystem::path& path) {
  std::vector<Line> out;
  std::ifstream stream(path);
  std::size_t number = 0;
  for (std::string text; std::getline(stream, text);) {
    ++number;
    Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("experts")) continue;
    out.push_back({std::move(json), fmt::format("{}: line {}", path.string(), number)});
  }
  return out;
}

}  // namespace

Json use_while_training(const std::filesystem::path& run) {
  const std::vector<Line> lines = lines_with_experts(run / "metrics.jsonl");
  if (lines.empty()) return {};
  Json out = {{"step", Json::array()}, {"tokens", Json::array()}, {"layers", Json::object()}};
  const std::size_t every = (lines.size() + kMostLines - 1) / kMostLines;
  for (std::size_t i = (lines.size() - 1) % every; i < lines.size(); i += every) {
    const Fields line(lines[i].json, lines[i].where);
    out["step"].push_back(line.int_in("step", 0, INT64_MAX));
    out["tokens"].push_back(line.number("tokens"));
    const Fields layers = line.object("experts");
    for (const auto& [layer, use] : layers.json().items()) {
      const Fields fields = layers.object(layer);
      for (const char* name : {"used", "entropy", "kl_uniform"}) {
        out["layers"][layer][name].push_back(fields.number(name));
      }
    }
  }
  return out;
}

}  // namespace subspace::experts
