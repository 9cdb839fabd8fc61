#pragma once

#include "train/trainer.h"

namespace subspace::train {

/// Where a run stands behind `step` steps.
struct Progressed {
  std::int64_t step = 0;
  std::int64_t tokens = 0;
  double seconds = 0;  ///< of training, over all processes
};

/// checkpoints/<step>/: config.json and model.safetensors (a model of its own),
/// optimizer.safetensors, state.json. The folder appears under its name whole or not at all,
/// in the place of one without its state.json; then all but the last `keep` are removed.
void save_checkpoint(const std::filesystem::path& run, const nn::Model& model,
                     const Optimizer& optimizer, const Progressed& progressed, std::int64_t keep);
/// Steps of the checkpoints that are there, rising.
std::vector<std::int64_t> checkpoint_steps(const std::filesystem::path& run);
/// The state of checkpoint `step` into model and optimiser. Throws as Checkpoint and
/// SafetensorsFile, saying which checkpoint is damaged, which one before it is whole, and what to
/// do.
Progressed load_checkpoint(const std::filesystem::path& run, std::int64_t step, nn::Model& model,
                           Optimizer& optimizer, int threads);

/// The folder of a run that holds a model: itself once it has ended, before that its newest
/// checkpoint. Whatever is no run is given back.
std::filesystem::path newest_model(const std::filesystem::path& run);

/// Lines of a run, each written whole. Opening leaves out what an earlier process wrote of steps
/// behind `step`, which will be made again.
class MetricsFile {
 public:
  MetricsFile(std::filesystem::path path, std::int64_t step);
  void add(const Json& line);

 private:
  std::filesystem::path path_;
};

}  // namespace subspace::train
