#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "train/settings.h"

namespace subspace::train {

/// One training run of a sweep: an arm (what is compared) with one seed.
struct SweepRun {
  std::string arm;   ///< "MLA-o, o_lora_rank 64"
  std::string name;  ///< its folder under runs/: the arm in letters that any file system takes
  Json fields;       ///< the arm's values of the grid, by name
  std::uint64_t seed = 0;
  Experiment experiment;
};

/// What a sweep's file says.
struct SweepPlan {
  /// What is measured: trained models, or the time of one attention layer of random weights.
  enum class Measure { training, layer_time };

  std::string title, question;
  Measure measure = Measure::training;
  bool alignment = false;  ///< of the learned output spaces, behind each run (alignment.h)
  std::vector<SweepRun> runs;
  std::vector<std::string> arms;         ///< in order, each once
  std::vector<std::string> grid_fields;  ///< in order
};

/// Reads a sweep:
///
///   title, question   what it is to answer, in words
///   config            a configuration, relative to this file; or
///   arms              [{name, config, set: {field: value}}, ...], compared with each other
///   grid              {field: [values]}: every combination, with every arm
///   set               {field: value} for all of them
///   seeds             [0, 1, 2]: every combination with each
///   measure           "training" (default) or "layer_time"
///   alignment         true: principal angles of output spaces behind each run
///
/// Fields are those of `--set`. Throws InvalidValue naming the field, Unsupported beyond 10,000
/// runs, and as read_experiment.
SweepPlan read_sweep(const std::filesystem::path& file);

}  // namespace subspace::train
