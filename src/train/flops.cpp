#include "train/flops.h"

#include <ATen/ATen.h>

namespace subspace::train {

double training_flops(const nn::Parameters& parameters, const nn::ModelConfig& model,
                      const Settings& settings) {
  double met = 0, head = 0;
  for (const nn::Parameter& parameter : parameters.all()) {
    if (!parameter.decays || !parameter.trained) continue;
    const std::string& name = parameter.name();
    const auto numbers = static_cast<double>(parameter.value.numel());
    const bool embedding =
        name.ends_with("embed_tokens.weight") || name.ends_with("word_embeddings.weight");
    if (embedding || name.starts_with("lm_head.")) {
      if (!embedding || model.tied) head += numbers;
    } else if (name.find(".experts.") != std::string::npos) {
      met += numbers * static_cast<double>(model.moe->active) /
             static_cast<double>(model.moe->experts);
    } else if (name.find("embeddings") == std::string::npos ||
               name.find("projection") != std::string::npos) {
      met += numbers;
    }
  }
  const nn::AttentionConfig& a = model.attention;
  const auto tokens = static_cast<double>(model.tokens());
  double attention = static_cast<double>(model.layers * a.heads * (a.query() + a.value)) * tokens;
  if (a.causal) attention /= 2;
  const double predicted = model.task == nn::Task::masked_lm ? settings.mask_probability : 1.0;
  const double rows = static_cast<double>(settings.batch_size * settings.accumulate) * tokens;
  return 6 * rows * (met + attention + predicted * head);
}

}  // namespace subspace::train
