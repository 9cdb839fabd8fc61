#pragma once

#include <filesystem>

#include "train/batches.h"

namespace subspace::train {

/// A generated task with a known answer: sequences with a repeat, of which the repeat is predicted
/// (docs/lora-known-answers.md). In `task.json` of a data folder, in the place of meta.json.
///
///   BOS p_0 .. p_{n-1} p_a .. p_{a+m-1},  p: n different ones of the symbols 1 .. symbols,
///   a uniform in first .. last, so that no fixed distance helps
///
/// What the token p_{a+i} of the repeat is to say:
///   base  p_{a+i+1}, the token behind its match: induction
///   ov    the same through a fixed exchange of the symbols 1 <-> 2, 3 <-> 4, .. (`swaps` pairs)
///   skip  p_{a+i+2}
///   rev   p_{a+i-1}
struct InductionTask {
  enum class Answer { base, ov, skip, rev };
  Answer answer = Answer::base;
  std::int64_t symbols = 32, length = 16, repeat = 8, first = 2, last = 6, swaps = 6;
  std::int64_t held_out = 16;  ///< passes of the held-out rows, the same whatever the seed

  std::int64_t tokens() const { return 1 + length + repeat; }
};

/// Throws NotFound, InvalidValue: fields that are missing or unknown, out of range, or that ask for
/// an answer outside p.
InductionTask read_induction_task(const Json& json, const std::string& where);

/// Passes of a task: rows of step n depend on (seed, n) alone. Throws InvalidValue for a model
/// that is no decoder, or whose vocabulary or length is too small.
std::unique_ptr<Batches> induction_batches(const InductionTask& task, const nn::ModelConfig& model,
                                           const Settings& settings);

/// Passes over a folder: a task if it has task.json, else data of subspace.prepare.
std::unique_ptr<Batches> open_folder(const std::filesystem::path& folder,
                                     const nn::ModelConfig& model, const Settings& settings);

}  // namespace subspace::train
