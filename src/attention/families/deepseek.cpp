// DeepSeek-V2, V3, R1 and Kimi-K2: multi-head latent attention. Rows of kv_b_proj are interleaved
// per head: head i owns qk_nope_head_dim rows of keys, then v_head_dim rows of values. The last
// qk_rope_head_dim rows of kv_a_proj_with_mqa are the one rotary key head.

#include <cmath>

#include "attention/family_base.h"

namespace subspace {
namespace {

class DeepSeek final : public FamilyBase {
 public:
  explicit DeepSeek(Context context) : FamilyBase(std::move(context), "deepseek") {
    read_usual_shape();
    ModelShape& shape = shape_to_fill();
    // The configuration's num_key_value_heads is a leftover: every head has its own keys.
    shape.kv_groups = shape.heads;
    shape.attention = "MLA";
    kv_rank_ = config().positive_int("kv_lora_rank");
    q_rank_ = config().positive_int_or("q_lora_rank", 0);
    nope_ = config().positive_int("qk_nope_head_dim");
    rope_ = config().positive_int("qk_rope_head_dim");
    value_ = config().positive_int("v_head_dim");
    shape.dims = {{"kv_lora_rank", kv_rank_},
                  {"qk_nope_head_dim", nope_},
                  {"qk_rope_head_dim", rope_},
                  {"v_head_dim", value_}};
    if (q_rank_ > 0) shape.dims["q_lora_rank"] = q_rank_;
    if (q_rank_ == 0) shape.notes.push_back("q_lora_rank is null: queries are not compressed");
    // Multi-token-prediction layers stand behind the last layer; a conversion may have dropped
    // them.
    while (checkpoint().has(name(shape.layers + shape.extra_layers) + "kv_b_proj.weight")) {
      ++shape.extra_layers;
    }
    if (shape.extra_layers > 0) {
      shape.notes.push_back(fmt::format("{} multi-token-prediction layer(s) behind layer {}",
                                        shape.extra_layers, shape.layers - 1));
    }
  }

 private:
  std::string name(std::int64_t layer) const {
    return fmt::format("{}layers.{}.self_attn.", decoder_prefix(), layer);
  }

  AttentionLayer build(std::int64_t layer, TensorSource& source) const override {
    const std::int64_t heads = shape().heads;
    const std::int64_t width = shape().hidden_size;
    const std::string attention = name(layer);
    const double eps = config().number_or("rms_norm_eps", 1e-6);
    // The latents' norms are built with their class's default, not the configuration's.
    constexpr double kLatentEps = 1e-6;

    AttentionLayer out;
    at::Tensor query;
    if (q_rank_ > 0) {
      out.qa = source.get(attention + "q_a_proj.weight", {q_rank_, width}).t();
      out.qa_bias = source.get_if(attention + "q_a_proj.bias", {q_rank_});
      out.q_latent = {Norm::Kind::rms,
                      source.get(attention + "q_a_layernorm.weight", {q_rank_}),
                      {},
                      kLatentEps};
      query = source.get(attention + "q_b_proj.weight", {heads * (nope_ + rope_), q_rank_});
    } else {
      query = source.get(attention + "q_proj.weight", {heads * (nope_ + rope_), width});
    }
    query = into_heads(query, heads);
    out.q = query.narrow(2, 0, nope_);
    out.q_rope = query.narrow(2, nope_, rope_);

    const at::Tensor down =
        source.get(attention + "kv_a_proj_with_mqa.weight", {kv_rank_ + rope_, width}).t();
    out.kva = down.narrow(1, 0, kv_rank_);
    out.kpe = down.narrow(1, kv_rank_, rope_);
    const at::Tensor down_bias =
        source.get_if(attention + "kv_a_proj_with_mqa.bias", {kv_rank_ + rope_});
    if (down_bias.defined()) {
      out.kva_bias = down_bias.narrow(0, 0, kv_rank_);
      out.kpe_bias = down_bias.narrow(0, kv_rank_, rope_);
    }
    out.kv_latent = {Norm::Kind::rms,
                     source.get(attention + "kv_a_layernorm.weight", {kv_rank_}),
                     {},
                     kLatentEps};
    const at::Tensor up = into_heads(
        source.get(attention + "kv_b_proj.weight", {heads * (nope_ + value_), kv_rank_}), heads);
    out.k = up.narrow(2, 0, nope_);
    out.v = up.narrow(2, nope_, value_);
    out.o = out_of_heads(source.get(attention + "o_proj.weight", {width, heads * value_}), heads);
    out.o_bias = source.get_if(attention + "o_proj.bias", {width});
    out.input = {
        Norm::Kind::rms,
        source.get(fmt::format("{}layers.{}.input_layernorm.weight", decoder_prefix(), layer),
                   {width}),
        {},
        eps};

    const RopeConfig rope = read_rope(config());
    const bool interleaved =
        shape().model_type == "deepseek_v2" || config().boolean_or("rope_interleave", true);
    out.rotary = make_rotary(config(), rope, rope_,
                             interleaved ? Rotary::Layout::interleaved : Rotary::Layout::half);
    out.softmax_scale = yarn_softmax_factor(rope) / std::sqrt(static_cast<double>(nope_ + rope_));
    return out;
  }

  std::int64_t kv_rank_, q_rank_, nope_, rope_, value_;
};

}  // namespace

std::unique_ptr<Family> make_deepseek(FamilyBase::Context context) {
  return std::make_unique<DeepSeek>(std::move(context));
}

}  // namespace subspace
