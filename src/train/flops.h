#pragma once

#include "nn/config.h"
#include "nn/parameters.h"
#include "train/settings.h"

namespace subspace::train {

/// Floating point operations that one step of training needs by the model's own arithmetic, forward
/// and backward, with rows as long as the model allows:
///
///   3 * 2 * (numbers in matrices that a token meets) a token
///   + 3 * 2 * T * H * (q + v) a token for attention, half of it if causal
///
/// The vocabulary head counts for the predicted tokens only, experts by those that are active, the
/// embedding's look-up not at all. This is the count that "model FLOP use" divides by the device's
/// peak.
double training_flops(const nn::Parameters& parameters, const nn::ModelConfig& model,
                      const Settings& settings);

}  // namespace subspace::train
