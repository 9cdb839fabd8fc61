// ViT: pre-norm encoder blocks.

#include "attention/families/encoders.h"

namespace subspace {
namespace {

class Vit final : public FamilyBase {
 public:
  explicit Vit(Context context) : FamilyBase(std::move(context), "vit") {
    read_usual_shape();
    shape_to_fill().dims = {{"head_dim", even_head_dim(shape(), config().where())}};
    base_ =
        find_prefix(checkpoint(), {"", "vit."}, "encoder.layer.0.attention.attention.query.weight");
  }

 private:
  AttentionLayer build(std::int64_t layer, TensorSource& source) const override {
    const std::string block = fmt::format("{}encoder.layer.{}.", base_, layer);
    const std::string self = block + "attention.attention.";
    return encoder_layer(shape(),
                         {self + "query", self + "key", self + "value",
                          block + "attention.output.dense", block + "layernorm_before", ""},
                         config().number_or("layer_norm_eps", 1e-12), source);
  }

  std::string base_;
};

}  // namespace

std::unique_ptr<Family> make_vit(FamilyBase::Context context) {
  return std::make_unique<Vit>(std::move(context));
}

}  // namespace subspace
