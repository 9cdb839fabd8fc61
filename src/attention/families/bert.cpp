// BERT and RoBERTa: post-norm blocks, so attention reads the LayerNorm that ends the block before
// (the embeddings' for the first).

#include "attention/families/encoders.h"

namespace subspace {
namespace {

class Bert final : public FamilyBase {
 public:
  explicit Bert(Context context) : FamilyBase(std::move(context), "bert") {
    read_usual_shape();
    shape_to_fill().dims = {{"head_dim", even_head_dim(shape(), config().where())}};
    base_ = find_prefix(checkpoint(), {"", "bert.", "roberta."},
                        "encoder.layer.0.attention.self.query.weight");
  }

 private:
  AttentionLayer build(std::int64_t layer, TensorSource& source) const override {
    const std::string block = fmt::format("{}encoder.layer.{}.", base_, layer);
    const std::string self = block + "attention.self.";
    const std::string norm =
        layer == 0 ? base_ + "embeddings.LayerNorm"
                   : fmt::format("{}encoder.layer.{}.output.LayerNorm", base_, layer - 1);
    AttentionLayer out = encoder_layer(
        shape(),
        {self + "query", self + "key", self + "value", block + "attention.output.dense", norm,
         block + "attention.output.LayerNorm"},
        config().number_or("layer_norm_eps", 1e-12), source);
    out.causal = config().boolean_or("is_decoder", false);
    return out;
  }

  std::string base_;
};

}  // namespace

std::unique_ptr<Family> make_bert(FamilyBase::Context context) {
  return std::make_unique<Bert>(std::move(context));
}

}  // namespace subspace
