#include "train/flops.h"

#include <ATen/ATen.h>

#include "kernels/expert_table.h"

namespace subspace::train {
namespace {

bool has(const std::string& name, const char* part) { return name.find(part) != std::string::npos; }

/// Multiplications a token of what single-neuron experts do with tensor `name`.
double met_by_selections(const std::string& name, double numbers, const nn::NeuronExpertsConfig& e,
                         std::int64_t tokens) {
  const auto selections = static_cast<double>(e.selections());
  const auto experts = static_cast<double>(e.experts);
  if (has(name, ".keys.")) return numbers * static_cast<double>(e.heads);
  if (has(name, ".expert_down.") || has(name, ".expert_up.")) return selections * numbers / experts;
  if (has(name, ".w1.")) {
    // Generated once a pass for all tokens, and each selection's vector is read and written.
    const std::int64_t all = tokens * e.selections();
    const bool table = kernels::choose_generation(all, e.experts) == kernels::Generate::table;
    const double rows = table ? experts : static_cast<double>(all);
    return rows * numbers / static_cast<double>(tokens) +
           2 * selections * static_cast<double>(e.hidden);
  }
  return has(name, ".expert_latents.") ? 0 : numbers;
}

}  // namespace

double training_flops(const nn::Parameters& parameters, const nn::ModelConfig& model,
                      const Settings& settings) {
  const std::int64_t pass = settings.batch_size * model.tokens();
  double met = 0, head = 0;
  for (const nn::Parameter& parameter : parameters.all()) {
    if (!parameter.decays || !parameter.trained) continue;
    const std::string& name = parameter.name();
    const auto numbers = static_cast<double>(parameter.value.numel());
    const bool embedding =
        name.ends_with("embed_tokens.weight") || name.ends_with("word_embeddings.weight");
    if (embedding || name.starts_with("lm_head.")) {
      if (!embedding || model.tied) head += numbers;
    } else if (has(name, ".experts.")) {
      met += numbers * static_cast<double>(model.moe->active) /
             static_cast<double>(model.moe->experts);
    } else if (model.neuron_experts && has(name, ".mlp.")) {
      met += met_by_selections(name, numbers, *model.neuron_experts, pass);
    } else if (!has(name, "embeddings") || has(name, "projection")) {
      met += numbers;
    }
  }
  const nn::AttentionConfig& a = model.attention;
  const auto tokens = static_cast<double>(model.tokens());
  double attention = static_cast<double>(model.layers * a.heads * (a.query() + a.value)) * tokens;
  if (a.causal) attention /= 2;
  const double predicted = model.task == nn::Task::masked_lm ? settings.mask_probability : 1.0;
  const double rows = static_cast<double>(settings.accumulate * pass);
  return 6 * rows * (met + attention + predicted * head);
}

ModelCounts counts_of(const nn::ModelConfig& model, const Settings& settings) {
  nn::Model::Options options;
  options.device = at::kMeta;
  options.fill = false;
  const nn::Model shapes(model, options);
  ModelCounts out;
  out.parameters = shapes.parameters().count();
  out.flops_per_token =
      training_flops(shapes.parameters(), model, settings) /
      static_cast<double>(settings.batch_size * settings.accumulate * model.tokens());
  return out;
}

}  // namespace subspace::train
