#pragma once

#include <string>
#include <vector>

#include "nn/model.h"

namespace subspace::nn::testing {

/// A configuration with every width small and different; `more` (JSON) replaces or adds fields,
/// null removes one.
Json tiny_config(const std::string& model_type, const std::string& more = "{}");

struct Variant {
  std::string name, model_type, more;
  Json config() const { return tiny_config(model_type, more); }
};
/// One of each attention, output, latent norm, feed-forward, position and architecture.
const std::vector<Variant>& variants();

/// The model in float64, norms, biases and buffers away from their first values.
std::unique_ptr<Model> tiny_model(const Json& config);
/// Three rows of tokens, or three images.
Input tiny_input(const ModelConfig& config);
/// Summed loss of fixed targets, some of them ignored, with the balance loss.
at::Tensor tiny_loss(const Model& model, const Input& input);

}  // namespace subspace::nn::testing
