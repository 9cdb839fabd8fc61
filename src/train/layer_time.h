#pragma once

#include <c10/core/Device.h>

#include "train/settings.h"

namespace subspace::train {

/// How long one attention layer takes, forward and backward, on random vectors: [B, T, d] with
/// B = train.batch_size and T = max_position_embeddings, in float32 on the CPU and bfloat16 on
/// CUDA unless train.precision says otherwise. After a warm-up, passes are repeated until
/// `seconds` have gone by, at least 5 times.
///
/// {milliseconds: the median pass, milliseconds_low, milliseconds_high: its quartiles, passes,
/// microseconds_per_token, parameters: of the layer}. Throws as read_model_config.
Json layer_time(const Experiment& experiment, c10::Device device, double seconds = 1);

}  // namespace subspace::train
