#pragma once

#include <c10/core/Device.h>

#include <filesystem>

#include "base/json.h"

namespace subspace::experts {

struct InspectOptions {
  std::filesystem::path run;   ///< of `train`, under way or ended, or any model that has experts
  std::filesystem::path data;  ///< of subspace.prepare, or with task.json; empty: the weights alone
  std::filesystem::path out;   ///< folder of the results
  std::int64_t tokens = 32768;
  c10::Device device = at::kCPU;
  int threads = 1;
};

/// What the experts of a model are and which are used. In `options.out`:
///
///   experts.json         all of it; the page is made from this (docs/ethos.md has the fields)
///   usage.csv, histogram.csv, tokens.csv, clusters.csv, neighbours.csv, interpolation.csv,
///   ranks.csv            the same in tables, those that there is something to say in
///   spectra.safetensors  layers.<L>.<MAP>.stack, float64
///   counts.safetensors   layers.<L>.counts, [heads, experts] int64
///
/// `absent` of experts.json names what does not apply to this kind of experts, or what was not
/// given, and why. experts.json is written last. Throws Unsupported for a model without experts,
/// NotFound (no run), as load_model and open_folder; Interrupted. Returns experts.json.
Json inspect_experts(const InspectOptions& options);

}  // namespace subspace::experts
