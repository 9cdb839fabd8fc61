#pragma once

#include <vector>

#include "nn/model.h"
#include "train/batches.h"

namespace subspace::experts {

/// What a layer with experts chose for the tokens of some text.
struct Observed {
  std::int64_t layer = 0;
  std::int64_t experts = 0;
  at::Tensor index;   ///< [tokens, H, k] int32, on the CPU
  at::Tensor counts;  ///< [H, experts] int64, on the CPU
  at::Tensor x;       ///< [up to 256 tokens, d] what the layer read, on the model's device
};

struct Observation {
  std::vector<Observed> layers;
  at::Tensor tokens;  ///< [tokens] int64: which ones, on the CPU; undefined for images
  std::int64_t rows = 0;
  bool held_out = true;  ///< false: the data has none, so rows that were trained on
};

/// Runs the model, as in evaluation, over whole passes of its data until at least `tokens` tokens
/// that are no padding were seen, or there are no more. Keeps 4 H k bytes a token and layer. Throws
/// as Batches, InvalidShape.
Observation observe(const nn::Model& model, const train::Batches& batches, std::int64_t tokens);

}  // namespace subspace::experts
