// GPT-2: Conv1D layers, which store W itself, [in, out], and one c_attn for q, k and v side by
// side.

#include <cmath>

#include "attention/families/encoders.h"

namespace subspace {
namespace {

class Gpt2 final : public FamilyBase {
 public:
  explicit Gpt2(Context context) : FamilyBase(std::move(context), "gpt2") {
    ModelShape& shape = shape_to_fill();
    shape.layers = config().positive_int("n_layer");
    shape.hidden_size = config().positive_int("n_embd");
    shape.heads = shape.kv_groups = config().positive_int("n_head");
    shape.attention = "MHA";
    shape.dims = {{"head_dim", even_head_dim(shape, config().where())}};
    base_ = find_prefix(checkpoint(), {"", "transformer."}, "h.0.attn.c_attn.weight");
  }

 private:
  AttentionLayer build(std::int64_t layer, TensorSource& source) const override {
    const std::int64_t width = shape().hidden_size;
    const std::int64_t heads = shape().heads;
    const std::int64_t head_dim = width / heads;
    const std::string block = fmt::format("{}h.{}.", base_, layer);
    const at::Tensor fused = source.get(block + "attn.c_attn.weight", {width, 3 * width});
    const at::Tensor bias = source.get(block + "attn.c_attn.bias", {3 * width});
    auto part = [&](std::int64_t p) {
      return fused.narrow(1, p * width, width).view({width, heads, head_dim}).transpose(0, 1);
    };
    auto bias_part = [&](std::int64_t p) {
      return bias_of_heads(bias.narrow(0, p * width, width), heads);
    };
    AttentionLayer out;
    out.q = part(0);
    out.k = part(1);
    out.v = part(2);
    out.q_bias = bias_part(0);
    out.k_bias = bias_part(1);
    out.v_bias = bias_part(2);
    out.o = source.get(block + "attn.c_proj.weight", {width, width}).view({heads, head_dim, width});
    out.o_bias = source.get(block + "attn.c_proj.bias", {width});
    out.input = {Norm::Kind::layer, source.get(block + "ln_1.weight", {width}),
                 source.get(block + "ln_1.bias", {width}),
                 config().number_or("layer_norm_epsilon", 1e-5)};
    out.softmax_scale = 1;
    if (config().boolean_or("scale_attn_weights", true)) {
      out.softmax_scale /= std::sqrt(static_cast<double>(head_dim));
    }
    if (config().boolean_or("scale_attn_by_inverse_layer_idx", false)) {
      out.softmax_scale /= static_cast<double>(layer + 1);
    }
    return out;
  }

  std::string base_;
};

}  // namespace

std::unique_ptr<Family> make_gpt2(FamilyBase::Context context) {
  return std::make_unique<Gpt2>(std::move(context));
}

}  // namespace subspace
