#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/dtype.h"

namespace subspace {

/// Published configurations the program carries (configs/models), e.g. "deepseek-v3".
std::vector<std::string> preset_names();

/// The configuration of a preset, or of a file if `name` ends in ".json". `layers`, if given,
/// replaces the number of layers. Throws Usage (neither preset nor file; lists the presets),
/// NotFound, InvalidFormat, InvalidValue (layers without a field to put them in).
Json model_config(const std::string& name, std::optional<std::int64_t> layers);

/// Makes the configuration say how its weights are stored: torch_dtype, and for F8_E4M3 the
/// quantization_config of 128 x 128 blocks as DeepSeek-V3 publishes it.
void describe_storage(Json& config, DType dtype);

/// Tensors that a family looks for by name and a configuration implies without a field for the
/// name: biases, head norms, and the first tensor of families whose names may carry a prefix.
std::vector<std::string> implied_names(const Json& config);

}  // namespace subspace
