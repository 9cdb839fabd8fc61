// DistilBERT: BERT's blocks under other names (dim, n_heads, n_layers; q_lin, k_lin, v_lin,
// out_lin).

#include "attention/families/encoders.h"

namespace subspace {
namespace {

class DistilBert final : public FamilyBase {
 public:
  explicit DistilBert(Context context) : FamilyBase(std::move(context), "distilbert") {
    ModelShape& shape = shape_to_fill();
    shape.layers = config().positive_int("n_layers");
    shape.hidden_size = config().positive_int("dim");
    shape.heads = shape.kv_groups = config().positive_int("n_heads");
    shape.attention = "MHA";
    shape.dims = {{"head_dim", even_head_dim(shape, config().where())}};
    base_ = find_prefix(checkpoint(), {"", "distilbert."},
                        "transformer.layer.0.attention.q_lin.weight");
  }

 private:
  AttentionLayer build(std::int64_t layer, TensorSource& source) const override {
    const std::string block = fmt::format("{}transformer.layer.{}.", base_, layer);
    const std::string attention = block + "attention.";
    const std::string norm =
        layer == 0 ? base_ + "embeddings.LayerNorm"
                   : fmt::format("{}transformer.layer.{}.output_layer_norm", base_, layer - 1);
    return encoder_layer(shape(),
                         {attention + "q_lin", attention + "k_lin", attention + "v_lin",
                          attention + "out_lin", norm, block + "sa_layer_norm"},
                         1e-12, source);
  }

  std::string base_;
};

}  // namespace

std::unique_ptr<Family> make_distilbert(FamilyBase::Context context) {
  return std::make_unique<DistilBert>(std::move(context));
}

}  // namespace subspace
