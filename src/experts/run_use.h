#pragma once

#include <filesystem>

#include "base/json.h"

namespace subspace::experts {

/// How experts were used while a run was trained, from its metrics.jsonl, thinned to 400 lines:
/// {step: [..], tokens: [..], layers: {"<layer>": {used: [..], entropy: [..], kl_uniform: [..]}}};
/// null where there is no such file, or no line in it that says so. A line that a killed process
/// left half written is passed over. Throws InvalidFormat, InvalidValue, NotFound (line, field).
Json use_while_training(const std::filesystem::path& run);

}  // namespace subspace::experts
