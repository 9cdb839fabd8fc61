#pragma once

#include "train/trainer.h"

namespace subspace::train {

struct FinetuneOptions {
  std::filesystem::path base;  ///< an encoder in Hugging Face layout: a run, or a checkpoint of one
  std::filesystem::path out;
  std::shared_ptr<const Dataset> data;  ///< texts with a class
  double epochs = 3;
  std::vector<std::uint64_t> seeds = {0};
  std::vector<std::string> sets;  ///< name=value, as for `train`
  c10::Device device = at::kCPU;
  int threads = 1;
  bool resume = false;
  bool deterministic = false;
};

/// Trains all weights of a pre-trained encoder, and a new classifier on its first token's vector,
/// on texts with a class (Devlin et al. 2019, sections 3.2 and 4.1): AdamW, rate rising over the
/// first tenth of the steps and falling to zero, rows of 32, 3 epochs, no dropout, 1e-4 (small
/// BERTs are fine-tuned at 3e-5 to 3e-4: Turc et al. 2019, section 3). A seed draws the classifier
/// and the order of the rows. The held-out rows are classified behind every epoch; the last epoch
/// is the result, none is chosen by them. In `options.out`:
///
///   seed_<s>/                 a folder of train(), whose checkpoints go when it is done, and
///                             result.json: {asked_for, seed, accuracy, loss, examples, steps,
///                             seconds, epochs: [{epoch, accuracy, loss}]}
///   result.json, result.csv   base, data, a row a seed; mean accuracy and its 95 % interval
///
/// With `resume` finished seeds are kept and an interrupted one goes on, to the same bits as
/// train() does. Throws InvalidValue: a base that is no encoder, or whose run had another tokenizer
/// than the data (both named); a finished seed of other settings, of another base's weights or of
/// other data (what differs is named); as train(), open_batches. Returns result.json.
Json finetune(const FinetuneOptions& options);

/// What train() is given for one seed.
Experiment finetuning(const FinetuneOptions& options, std::uint64_t seed);

}  // namespace subspace::train
