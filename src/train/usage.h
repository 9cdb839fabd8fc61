#pragma once

#include "nn/model.h"

namespace subspace::train {

/// How evenly experts were chosen. counts [heads, N] -> float64 [heads + 1, 2], the last row of all
/// heads together, on the counts' device and without waiting for it: with p_e the share of choices
/// that fell on expert e
///
///   column 0   share of experts that were chosen at all
///   column 1   entropy -sum p_e log p_e in nats (0 where nothing was chosen)
at::Tensor usage_of(const at::Tensor& counts);

/// Of each layer with experts, over the training passes since the last call; sets the counts to
/// zero. {"<layer>": {used, entropy, kl_uniform, heads: {used: [..], entropy, kl_uniform}}}, with
/// kl_uniform = log N - entropy, the divergence from even use; `heads` only where experts are
/// chosen by several. Empty for a model without experts. Waits for the device once.
Json take_usage(const nn::Model& model);

}  // namespace subspace::train
