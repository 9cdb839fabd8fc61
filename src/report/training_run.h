#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"

namespace subspace {

/// What a page needs of one folder of `subspace train`.
struct TrainingRun {
  std::filesystem::path folder;
  std::string name;   ///< of the folder; of a fine-tuned seed the folder above it
  Json model, train;  ///< as in run.json; `train` without the seed
  std::string data, dtype, device;
  std::int64_t seed = 0;
  std::string base;  ///< of a fine-tuned model; empty otherwise
  std::optional<std::int64_t> parameters;
  /// Columns, one value a line of metrics.jsonl: {step, tokens, seconds, loss, lr, grad_norm,
  /// tokens_per_second} of logged steps, {step, tokens, seconds, loss, accuracy, perplexity} of
  /// evaluations (null where a line lacks one).
  Json steps, evaluations;
};

/// Reads run.json and metrics.jsonl of `folder`, the number of parameters from the shapes in
/// model.safetensors, of the run or of its last checkpoint. A last line that is no JSON is left
/// out: the run is under way or was killed. Of more than `most` logged steps evenly chosen ones are
/// kept, the last among them. Throws NotFound, InvalidFormat, InvalidValue with file and line.
TrainingRun read_training_run(const std::filesystem::path& folder, std::size_t most = 2000);

/// "mla-o_seed_2" -> "mla-o": what runs of one configuration have in common.
std::string without_seed(const std::string& name);

}  // namespace subspace
