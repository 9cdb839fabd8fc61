#pragma once

#include <string>
#include <utility>

#include "attention/family.h"
#include "attention/rope.h"
#include "attention/tensor_source.h"
#include "base/error.h"

namespace subspace {

/// What every family shares: the checkpoint, its (nested) configuration, and the two uses of the
/// family's one recipe, build().
class FamilyBase : public Family {
 public:
  /// What open_family hands to a family's factory.
  struct Context {
    const Checkpoint& checkpoint;
    Fields config;       ///< the text model's configuration, nested or not
    std::string prefix;  ///< in front of "model." in a model that wraps the language model
    std::string model_type;
  };

  const ModelShape& shape() const override { return shape_; }
  std::vector<Needed> needed(std::int64_t layer) const override;
  Rotary rotary(std::int64_t layer) const override;
  AttentionLayer load(std::int64_t layer, int threads, bool allow_nonfinite,
                      const at::Device& device) const override;

 protected:
  explicit FamilyBase(Context context, const char* family);

  /// The recipe: which tensors, how they are laid out, what is done with them.
  virtual AttentionLayer build(std::int64_t layer, TensorSource& source) const = 0;

  const Fields& config() const { return context_.config; }
  const Checkpoint& checkpoint() const { return context_.checkpoint; }
  const std::string& prefix() const { return context_.prefix; }
  ModelShape& shape_to_fill() { return shape_; }

  /// Name in front of "layers.L." in a decoder: "model.", or nothing where a bare base model was
  /// saved.
  std::string decoder_prefix() const;

  /// hidden_size, layers, heads and kv groups under their usual names, checked against each other.
  void read_usual_shape();

 private:
  void check_layer(std::int64_t layer) const;

  Context context_;
  ModelShape shape_;
};

/// The factories of src/attention/families, one per file.
using Factory = std::unique_ptr<Family> (*)(FamilyBase::Context);
std::unique_ptr<Family> make_llama(FamilyBase::Context context);
std::unique_ptr<Family> make_gemma(FamilyBase::Context context);
std::unique_ptr<Family> make_deepseek(FamilyBase::Context context);
std::unique_ptr<Family> make_bert(FamilyBase::Context context);
std::unique_ptr<Family> make_distilbert(FamilyBase::Context context);
std::unique_ptr<Family> make_gpt2(FamilyBase::Context context);
std::unique_ptr<Family> make_vit(FamilyBase::Context context);

}  // namespace subspace
