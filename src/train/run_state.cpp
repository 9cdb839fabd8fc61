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

/// Whether all files of a checkpoint can be opened and are as long as their headers say.
bool is_whole(const fs::path& folder) {
  try {
    read_json_file(folder / "state.json");
    const Checkpoint model(folder);
    const SafetensorsFile optimizer(folder / "optimizer.safetensors");
    return true;
  } catch (const Error&) {
    return false;
  }
}

[[noreturn]] void fail_damaged(const fs::path& run, std::int64_t step, const Error& error) {
  std::string what = error.what();
  // What helps with a model from elsewhere does not here.
  const std::string advice = " (fetch it again)";
  if (const auto at = what.find(advice); at != std::string::npos) what.erase(at, advice.size());
  const auto steps = checkpoint_steps(run);
  const auto before = std::find_if(steps.rbegin(), steps.rend(), [&](std::int64_t other) {
    return other < step && is_whole(folder_of(run, other));
  });
  const std::string folder = folder_of(run, step).string();
  fail(error.code(), "{}: the checkpoint is damaged: {}. {}", folder, what,
       before == steps.rend()
           ? fmt::format("No other is whole; remove {} and train anew", run.string())
           : fmt::format("{} before it is whole: remove {} and --resume goes on from there",
                         folder_of(run, *before).string(), folder));
}

Progressed read_checkpoint(const fs::path& folder, nn::Model& model, Optimizer& optimizer,
                           int threads) {
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
  // What lies there has no state, so nobody goes on from it. A kill before the rename leaves the
  // checkpoints before this one.
  remove_tree(final);
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
  try {
    return read_checkpoint(folder_of(run, step), model, optimizer, threads);
  } catch (const Error& error) {
    fail_damaged(run, step, error);
  }
}

fs::path newest_model(const fs::path& run) {
  const auto steps = checkpoint_steps(run);
  return fs::exists(run / "config.json") || steps.empty() ? run : folder_of(run, steps.back());
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
