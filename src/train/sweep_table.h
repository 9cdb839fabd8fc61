#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "train/sweep_plan.h"

namespace subspace::train {

/// A mean over seeds and half the width of its 95 % interval, Student's t: mean +- t s / sqrt(n).
struct Interval {
  std::int64_t count = 0;
  double mean = 0;
  double half = 0;  ///< NaN for one value, of which nothing says how far it may be off
};
Interval interval(const std::vector<double>& values);
/// {runs, mean, half_width_95}; null for what is not finite.
Json to_json(const Interval& interval);

/// What a sweep found: one object a run, {arm, seed, <fields of the grid>, <numbers>}, and of all
/// runs of an arm every number's interval.
Json sweep_table(const SweepPlan& plan, const std::vector<Json>& runs);

/// sweep.json, runs.csv (one row a run) and table.csv (one row an arm) in `folder`.
void write_sweep(const std::filesystem::path& folder, const Json& table);

}  // namespace subspace::train
