#pragma once

#include <functional>
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
    Fields config;           ///< the language model's configuration, nested or not
    std::string prefix;      ///< in front of its tensors in a model that wraps it
    std::string model_type;  ///< the language model's own
    std::string wrapper;     ///< model_type of what wraps it, or empty
  };

  const ModelShape& shape() const override { return shape_; }
  std::vector<Needed> needed(std::int64_t layer) const override;
  AttentionLayer assemble(std::int64_t layer, TensorSource& source) const override;
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
  /// The language model's; shape().model_type is the one that config.json begins with.
  const std::string& model_type() const { return context_.model_type; }
  ModelShape& shape_to_fill() { return shape_; }

  /// Name in front of "layers.L." in a decoder: "model.", or nothing where a bare base model was
  /// saved, which the tensor `first` of its layer 0 shows.
  std::string decoder_prefix(const char* first = "input_layernorm.weight") const;

  /// What a configuration leaves to its class, where that is known; 0: it must say it (or, for
  /// groups, has one a head).
  struct Defaults {
    std::int64_t heads = 0, groups = 0;
  };
  /// hidden_size, layers, heads and kv groups under their usual names, checked against each other.
  void read_usual_shape(const Defaults& defaults, const char* layers = "num_hidden_layers");
  void read_usual_shape() { read_usual_shape({}); }

  /// Throws Unsupported if the configuration rotates a part of each head only, which this family's
  /// own code does not.
  void require_whole_heads(const RopeConfig& rope) const;
  /// Notes the factor that Llama 4's scaling puts on queries beyond the trained length.
  void note_query_scaling(const RopeConfig& rope);

  /// Multi-token-prediction layers stand behind the last layer, and a conversion may have dropped
  /// them: counts those of which the checkpoint has the tensor that `first` names, and notes it.
  void find_extra_layers(const std::function<std::string(std::int64_t layer)>& first);

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
std::unique_ptr<Family> make_deepseek_v4(FamilyBase::Context context);
std::unique_ptr<Family> make_bert(FamilyBase::Context context);
std::unique_ptr<Family> make_distilbert(FamilyBase::Context context);
std::unique_ptr<Family> make_gpt2(FamilyBase::Context context);
std::unique_ptr<Family> make_subspace(FamilyBase::Context context);
std::unique_ptr<Family> make_vit(FamilyBase::Context context);

}  // namespace subspace
