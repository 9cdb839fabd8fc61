#pragma once

#include <c10/core/Device.h>

#include <filesystem>
#include <functional>
#include <memory>

#include "train/batches.h"
#include "train/optimizer.h"

namespace subspace::train {

struct RunOptions {
  std::filesystem::path out;
  c10::Device device = at::kCPU;
  int threads = 1;
  bool resume = false;
  bool deterministic = false;
  /// Where passes come from instead of `data`, if it is set.
  std::function<std::unique_ptr<Batches>(const nn::ModelConfig&, const Settings&)> batches;
};

/// Mean loss in nats a predicted token over the held-out rows.
struct Evaluation {
  double loss = 0;
  double accuracy = 0;     ///< share of targets that have the largest logit
  std::int64_t count = 0;  ///< predicted tokens, or images or texts that were classified
  bool classes = false;    ///< the latter: a perplexity would say nothing
  /// exp(loss * text tokens / words): comparable across tokenizers; 0 where words are unknown. Of a
  /// masked model the loss of a token is that of the masked ones: beside no decoder's.
  double word_perplexity = 0;
};
/// At most `rows` of them; 0: all. Throws NotFound if the data has no held-out rows.
Evaluation evaluate(const nn::Model& model, const Batches& batches, c10::Device device,
                    std::int64_t rows = 0);
/// loss, perplexity, accuracy, tokens, word_perplexity; of classes: loss, accuracy, examples.
Json to_json(const Evaluation& evaluation);

/// Trains `experiment.model` as `experiment.train` says. In `options.out`:
///
///   run.json               model, settings, identity of the data, tokenizer, versions
///   metrics.jsonl          one object a logged step, and one an evaluation
///   checkpoints/<step>/    the whole state behind `step` steps; the last few are kept
///   config.json, model.safetensors   the last step; of an adapter
///   adapter_config.json, adapter_model.safetensors instead, as PEFT writes them
///
/// With `experiment.base` and no adapter the model begins with that checkpoint's weights, but for
/// the head of a new task (Model::new_tensors) that it may not have; run.json says which weights
/// (their SHA-256), and a run that is resumed need not be told of them again.
///
/// Killed at any moment and resumed, the run ends with the same losses and weights as one that was
/// not, bit for bit: on the CPU with the same number of threads, on CUDA with `deterministic`.
/// Between logged steps nothing waits for the device.
///
/// Throws InvalidValue if the folder holds a run and `resume` is not set, or if model, settings or
/// data are not those of the run that is resumed (the field, or the file of the data that was
/// changed since, is named); NotFinite for a loss that is
/// not finite, with the step, the first layer whose output is not, and the last good checkpoint;
/// Interrupted after a signal, with a checkpoint written. Returns the last metrics.
Json train(const Experiment& experiment, std::shared_ptr<const Dataset> data,
           const RunOptions& options);

}  // namespace subspace::train
