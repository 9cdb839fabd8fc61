#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "nn/config.h"

namespace subspace::train {

/// How a model is trained: the `train` object of a configuration. docs/training.md lists the
/// fields.
struct Settings {
  std::int64_t batch_size = 0;  ///< rows of one pass
  std::int64_t accumulate = 1;  ///< passes whose gradients make one step
  std::int64_t steps = 0;
  double learning_rate = 0;
  double warmup = 0.1;           ///< share of the steps
  std::string decay = "linear";  ///< linear, cosine (both to zero) or none
  double weight_decay = 0.01;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double max_grad_norm = 1;         ///< 0: no clipping
  double mask_probability = 0.15;   ///< masked_lm
  bool separate_documents = false;  ///< documents packed into one row do not see each other
  std::int64_t log_every = 10, evaluate_every = 0, checkpoint_every = 0;
  std::int64_t evaluate_rows = 0;  ///< of the held-out split during training; 0: all
  std::int64_t keep_checkpoints = 2;
  std::uint64_t seed = 0;
  std::string precision = "auto";  ///< float32, bfloat16 or auto: bfloat16 on CUDA
};

/// A configuration: the model's fields beside the object `train`.
struct Experiment {
  Json model;
  Json train;
  Json adapter;      ///< of a LoRA adapter on a frozen base; null: the model itself is trained
  std::string base;  ///< the adapter's base, or the model whose weights this one begins with: a
                     ///< folder in Hugging Face layout; empty: neither
  std::string where;
  /// Fields that were changed, and by what: "--set steps=0", or a sweep's file in its place.
  std::map<std::string, std::string> set_by = {};
};

/// Reads CONFIG and changes the fields that `sets` names ("learning_rate=1e-3"; the value is JSON,
/// or a string if it is none). A name that `train` has is meant there, any other is the model's.
/// Throws Usage for a malformed set, and as read_json_file. With an object `adapter` the model's
/// fields are those of `base`, and CONFIG has none: InvalidValue, NotFound if one lacks the other.
Experiment read_experiment(const std::filesystem::path& file, const std::vector<std::string>& sets,
                           const std::string& base = "", const std::string& by = "--set");

/// The same changes to what was made otherwise. Throws Usage. Errors about such a field say that it
/// was set `by` these.
void apply_sets(Experiment& experiment, const std::vector<std::string>& sets,
                const std::string& by = "--set");

/// Checks all of `train`. Throws InvalidValue naming the field (unknown ones with the nearest known
/// name), NotFound for a missing one.
Settings read_settings(const Json& train, const std::string& where);
/// The same and nn::read_model_config of an experiment: an error about a field that was set says by
/// what.
Settings read_settings(const Experiment& experiment);
nn::ModelConfig read_model(const Experiment& experiment);
Json to_json(const Settings& settings);

/// Learning rate of a step, counted from 0: rises linearly over the first warmup * steps, so that
/// its last step has the full rate, then falls to zero behind the last step.
double learning_rate_at(const Settings& settings, std::int64_t step);

}  // namespace subspace::train
