#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention/layer.h"
#include "checkpoint/checkpoint.h"

namespace subspace {

class TensorSource;

/// One model family: knows config.json's fields and the tensors' names, and nobody else does.
/// Adding a family is one file: a subclass and its registration (docs/adding-a-family.md).
class Family {
 public:
  virtual ~Family() = default;

  virtual const ModelShape& shape() const = 0;

  /// Every tensor that layer `layer` of attention needs (norms and biases too), with the shape the
  /// configuration implies. Scales of FP8 blocks are not listed. Reads no weights.
  struct Needed {
    std::string name;
    std::vector<std::int64_t> shape;
  };
  virtual std::vector<Needed> needed(std::int64_t layer) const = 0;

  /// The layer as this family's recipe makes it from any source of tensors: what load() does with
  /// the checkpoint's. With a source of other contents it says where each number of the layer comes
  /// from, or what a change of stored tensors does to the layer. Range as in load().
  virtual AttentionLayer assemble(std::int64_t layer, TensorSource& source) const = 0;

  /// The layer's rotary position embedding; the configuration alone says it.
  virtual Rotary rotary(std::int64_t layer) const = 0;

  /// Decodes one layer onto a device. Throws NotFound / InvalidShape (tensor, found, expected) /
  /// NotFinite, or, with allow_nonfinite, leaves NaN and Inf in place. Range: [0, layers +
  /// extra_layers).
  virtual AttentionLayer load(std::int64_t layer, int threads, bool allow_nonfinite = false,
                              const at::Device& device = at::kCPU) const = 0;
};

/// The family of a checkpoint, by config.json's model_type (nested text_config included). Throws
/// Unsupported with the list of known families; NotFound/InvalidValue for fields of the config.
std::unique_ptr<Family> open_family(const Checkpoint& checkpoint);

/// model_type values that open_family accepts, sorted.
std::vector<std::string> known_model_types();

}  // namespace subspace
