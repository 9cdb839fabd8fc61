#pragma once

#include <memory>

#include "train/sweep_plan.h"
#include "train/trainer.h"

namespace subspace::train {

struct SweepOptions {
  std::filesystem::path out;
  std::shared_ptr<const Dataset> data;  ///< may be absent where only times of layers are measured
  c10::Device device = at::kCPU;
  int threads = 1;
  bool deterministic = false;
};

/// Does what is still to be done of a sweep. In `options.out`:
///
///   runs/<arm>_seed_<s>/   each a folder of `train`, and result.json once it is done
///   sweep.json, runs.csv, table.csv   what is known so far, written anew behind every run
///
/// Runs that are done are kept, one that was interrupted goes on from its last checkpoint: started
/// again, a sweep ends with the numbers of one that was not disturbed. Throws InvalidValue, naming
/// what differs, if a finished run was made from other settings or other data than the sweep now
/// asks for, or timed on another device; as train(). Returns the table.
Json run_sweep(const SweepPlan& plan, const SweepOptions& options);

}  // namespace subspace::train
