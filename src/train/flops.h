#pragma once

#include "nn/model.h"
#include "train/settings.h"

namespace subspace::train {

/// Floating point operations that one step of training needs by the model's own arithmetic, forward
/// and backward, with rows as long as the model allows:
///
///   3 * 2 * (numbers in matrices that a token meets) a token
///   + 3 * 2 * T * H * (q + v) a token for attention, half of it if causal
///
/// The vocabulary head counts for the predicted tokens only, experts by those that are active, the
/// embedding's look-up not at all. Of single-neuron experts: the router's keys once a head, each
/// selection's vectors, and of generated ones the product that generates, N or as many as there are
/// selections in a pass (kernels::choose_generation), shared by the tokens of the pass. This is the
/// count that "model FLOP use" divides by the device's peak.
double training_flops(const nn::Parameters& parameters, const nn::ModelConfig& model,
                      const Settings& settings);

/// What a model costs, without making it: its tensors are shapes alone.
struct ModelCounts {
  std::int64_t parameters = 0;
  double flops_per_token = 0;  ///< training_flops over the tokens of a step
};
ModelCounts counts_of(const nn::ModelConfig& model, const Settings& settings);

}  // namespace subspace::train
