#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "base/json.h"
#include "lora/adapted_modules.h"

namespace subspace {

struct ModulesOptions {
  std::filesystem::path out;
  std::vector<std::int64_t> layers;
  /// Cosines below which a direction counts as an intruder; the published one is 0.5.
  std::vector<double> thresholds = {0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9};
  std::int64_t top = 10;   ///< leading directions that are looked at, as published
  std::int64_t draws = 4;  ///< random updates a module is compared with
  std::uint64_t seed = 0;
};

/// What decomposing the adapted modules of these layers costs: the sum of out in n, n the smaller
/// side, twice where the adapted matrix is decomposed as well. Reads no weights.
double modules_cost(const AdaptedModel& model, const std::vector<std::int64_t>& layers);

/// Intruder dimensions of whole modules (module_intruders.h): modules.json and modules.csv in the
/// folder, each whole or not at all, written when the last module is done; `facts` stands under
/// "model". On the CPU, one module in memory at a time. Returns modules.json's contents. Throws
/// what module_weights does, Interrupted between modules.
Json run_lora_modules(const AdaptedModel& model, const Json& facts, const ModulesOptions& options,
                      int threads);

/// modules.csv: a row a module and side, with its numbers by direction and by threshold.
std::string modules_csv(const Json& modules);

}  // namespace subspace
