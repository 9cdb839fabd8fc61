#include "train/run_state.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>
#include <fstream>

#include "base/atomic_file.h"
#include "base/error.h"

namespace subspace::train {
namespace fs = std::filesystem;
namespace {

fs::path folder_of(const fs::path& run, std::int64_t step) {
  return run / "checkpoints" / std::to_string(step);
}

}  // namespace

void save_checkpoint(const fs::path& run, const nn::Model& model, const Optimizer& optimizer,
                     const Progressed& progressed, std::int64_t keep) {
  const fs::path final = folder_of(run, progressed.step);
  if (fs::exists(final / "state.json")) return;
  const fs::path partial = run / "checkpoints" / fmt::format(".partial.{}", progressed.step);
  remove_tree(partial);
  create_folder(partial);
  nn::save_model(model, partial);
  nn::write_tensors(partial / "optimizer.safetensors", optimizer.state());
  const Json state = {
      {"step", progressed.step}, {"tokens", progressed.tokens}, {"seconds", progressed.seconds}};
  write_file_atomically(partial / "state.json", state.dump() + "\n");
  std::error_code status;
  fs::rename(partial, final, status);
  if (status) {
    fail(ErrorCode::Io, "{}: cannot be renamed to {}: {}", partial.string(), final.string(),
         status.message());
  }
  const auto steps = checkpoint_steps(run);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < steps.size(); ++i) {
    remove_tree(folder_of(run, steps[i]));
  }
}

std::vector<std::int64_t> checkpoint_steps(const fs::path& run) {
  std::vector<std::int64_t> steps;
  if (!fs::exists(run / "checkpoints")) return steps;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints")) {
    const std::string name = entry.path().filename().string();
    std::int64_t step = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
    if (error == std::errc() && end == name.data() + name.size() &&
        fs::exists(entry.path() / "state.json")) {
      steps.push_back(step);
    }
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

Progressed load_checkpoint(const fs::path& run, std::int64_t step, nn::Model& model,
                           Optimizer& optimizer, int threads) {
  const fs::path folder = folder_of(run, step);
  const Json json = read_json_file(folder / "state.json");
  const Fields state(json, (folder / "state.json").string());
  model.parameters().load(Checkpoint(folder), threads);
  optimizer.load(SafetensorsFile(folder / "optimizer.safetensors"));
  Progressed out;
  out.step = state.int_in("step", 0, INT64_MAX);
  out.tokens = state.int_in("tokens", 0, INT64_MAX);
  out.seconds = state.number("seconds");
  return out;
}

MetricsFile::MetricsFile(fs::path path, std::int64_t step) : path_(std::move(path)) {
  std::string kept;
  if (fs::exists(path_)) {
    std::ifstream stream(path_);
    for (std::string line; std::getline(stream, line);) {
      const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
      // A line that a killed process left half written is no JSON.
      if (json.is_discarded() || !json.is_object() || !json.contains("step")) continue;
      if (json.at("step").get<std::int64_t>() <= step) kept += line + "\n";
    }
  }
  write_file_atomically(path_, kept);
}

void MetricsFile::add(const Json& line) {
  std::ofstream stream(path_, std::ios::app);
  stream << line.dump() + "\n" << std::flush;
  if (!stream) fail(ErrorCode::Io, "{}: cannot be written", path_.string());
}

}  // namespace subspace::train
