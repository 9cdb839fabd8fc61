#pragma once

#include <memory>
#include <optional>
#include <string>

#include "data/dataset.h"
#include "nn/model.h"
#include "train/settings.h"

namespace subspace::train {

/// What one pass reads and is to say. Tensors are on the CPU until they are moved.
struct Batch {
  nn::Input input;
  /// Rows of the flattened [B T] vectors that have a target, [P]; undefined: all of them (images:
  /// the class token's). Of texts with a class the first of each.
  at::Tensor predicted;
  at::Tensor targets;       ///< [P] int64; -100 fills up to a whole number of rows
  std::int64_t count = 0;   ///< targets that are no filling
  std::int64_t tokens = 0;  ///< tokens read that are no padding; images: pictures
  Batch to(c10::Device device, c10::ScalarType dtype) const;
  /// The same in memory from which a GPU copies without the processor.
  Batch pinned() const;
  /// Into the tensors of a batch of the same shapes, without waiting. Counts too.
  void copy_into(Batch& out) const;

  std::vector<at::Tensor*> tensors();
  std::vector<const at::Tensor*> tensors() const;
};

/// Where passes come from. A training pass depends on (seed, step, part) alone, so that a run that
/// goes on after a kill sees what it would have seen. Const members may be called from any thread.
class Batches {
 public:
  virtual ~Batches() = default;
  /// Pass `part` (of settings.accumulate) of a step.
  virtual Batch training(std::int64_t step, std::int64_t part) const = 0;
  /// The n-th pass over the held-out rows, in order; nothing behind the last. With a masked model
  /// the masks are the same every time.
  virtual std::optional<Batch> held_out(std::int64_t n) const = 0;
  /// Tokens of text and words of the held-out rows, for the perplexity of a word; 0: unknown.
  virtual std::int64_t held_out_words() const { return 0; }
  virtual std::int64_t held_out_text_tokens() const { return 0; }
  /// Hash of what the data is.
  virtual std::string id() const = 0;
  /// {name, sha256} of what made the tokens; null where nothing did.
  virtual Json tokenizer() const { return {}; }
  /// Reads all that is stored, or the held-out rows alone, and throws InvalidValue naming the file
  /// if it is not what id() was made from. About 5 ns a byte.
  virtual void verify() const {}
  virtual void verify_held_out() const {}
};

/// Passes over a folder that subspace.prepare made. Throws InvalidValue, naming both sides, if the
/// data does not fit the model: kind, style, vocabulary, length, image size, classes. Texts with a
/// class come in rows as wide as the longest of the pass, up to a multiple of 16.
std::unique_ptr<Batches> open_batches(std::shared_ptr<const Dataset> data,
                                      const nn::ModelConfig& model, const Settings& settings);

}  // namespace subspace::train
