// Models that this project trains (src/nn) and transformers does not have: subspace_encoder,
// subspace_decoder and subspace_vit. Decoders' names whatever the model, attention as in Llama or
// as in DeepSeek-V3, and an output that is dense or goes through one latent a group of heads:
// o_a_proj [G r, (H/G) d_v], whose rows g r .. (g+1) r read the heads of group g, and o_b_proj
// [d, G r].

#include <cmath>

#include "attention/family_base.h"

namespace subspace {
namespace {

class Subspace final : public FamilyBase {
 public:
  explicit Subspace(Context context) : FamilyBase(std::move(context), "subspace") {
    read_usual_shape();
    ModelShape& shape = shape_to_fill();
    kv_rank_ = config().positive_int_or("kv_lora_rank", 0);
    rotates_ = config().string_or("position_embedding_type", usual_positions()) == "rope";
    if (kv_rank_ > 0) {
      read_latents();
    } else {
      read_heads();
    }
    out_rank_ = config().positive_int_or("o_lora_rank", 0);
    if (out_rank_ == 0) return;
    out_groups_ = config().positive_int_or("o_groups", 1);
    if (shape.heads % out_groups_ != 0) {
      fail(ErrorCode::InvalidValue, "{}: num_attention_heads {} is not a multiple of o_groups {}",
           config().where(), shape.heads, out_groups_);
    }
    shape.attention += out_groups_ == 1 ? ", shared output latent" : ", grouped output latents";
    shape.dims["o_lora_rank"] = out_rank_;
    shape.dims["o_groups"] = out_groups_;
    const std::string norm = config().string_or("o_latent_norm", "none");
    if (norm != "none") {
      shape.notes.push_back("the output latent's norm (" + norm + ") is not part of the maps");
    }
  }

 private:
  const char* usual_positions() const {
    return shape().model_type == "subspace_vit" ? "absolute" : "rope";
  }

  void read_latents() {
    ModelShape& shape = shape_to_fill();
    shape.kv_groups = shape.heads;
    shape.attention = "MLA";
    q_rank_ = config().has("q_lora_rank") ? config().int_in("q_lora_rank", 0, 1 << 30) : 0;
    nope_ = config().has("qk_nope_head_dim") ? config().int_in("qk_nope_head_dim", 0, 1 << 30) : 0;
    rope_ = config().has("qk_rope_head_dim") ? config().int_in("qk_rope_head_dim", 0, 1 << 30) : 0;
    value_ = config().positive_int("v_head_dim");
    shape.dims = {{"kv_lora_rank", kv_rank_},
                  {"q_lora_rank", q_rank_},
                  {"qk_nope_head_dim", nope_},
                  {"qk_rope_head_dim", rope_},
                  {"v_head_dim", value_}};
    own_rotary_keys_ = config().string_or("qk_rope_keys", "shared") == "per_head";
    if (nope_ == 0 && !own_rotary_keys_)
      shape.notes.push_back("every dimension of a head is rotated: no Q, K and QK");
  }

  void read_heads() {
    ModelShape& shape = shape_to_fill();
    if (!config().has("head_dim") && shape.hidden_size % shape.heads != 0) {
      fail(ErrorCode::InvalidValue,
           "{}: hidden_size {} is not a multiple of num_attention_heads {}, and there is no "
           "head_dim",
           config().where(), shape.hidden_size, shape.heads);
    }
    value_ = config().positive_int_or("head_dim", shape.hidden_size / shape.heads);
    rope_ = !rotates_                          ? 0
            : config().has("qk_rope_head_dim") ? config().int_in("qk_rope_head_dim", 0, value_)
                                               : value_;
    shape.dims = {{"head_dim", value_}, {"qk_rope_head_dim", rope_}};
  }

  AttentionLayer build(std::int64_t layer, TensorSource& source) const override {
    const std::string block = fmt::format("model.layers.{}.", layer);
    const std::int64_t width = shape().hidden_size;
    const double eps = config().number_or("rms_norm_eps", 1e-6);
    AttentionLayer out;
    out.input = {Norm::Kind::rms, source.get(block + "input_layernorm.weight", {width}), {}, eps};
    if (kv_rank_ > 0) {
      latent_queries(block + "self_attn.", eps, source, out);
      latent_keys(block + "self_attn.", eps, source, out);
    } else {
      plain(block + "self_attn.", source, out);
    }
    output(block + "self_attn.", source, out);
    out.causal = shape().model_type == "subspace_decoder";
    const RopeConfig rope = read_rope(config());
    const std::int64_t query = kv_rank_ > 0 ? nope_ + rope_ : value_;
    out.softmax_scale = 1 / std::sqrt(static_cast<double>(query));
    if (kv_rank_ > 0) out.softmax_scale *= yarn_softmax_factor(rope);
    if (rotates_ && rope_ > 0) {
      const bool interleaved = config().boolean_or("rope_interleave", kv_rank_ > 0);
      out.rotary = make_rotary(config(), rope, rope_,
                               interleaved ? Rotary::Layout::interleaved : Rotary::Layout::half);
      if (own_rotary_keys_) out.rotary.begin = nope_;
    }
    return out;
  }

  void plain(const std::string& base, TensorSource& source, AttentionLayer& out) const {
    const std::int64_t width = shape().hidden_size;
    auto projection = [&](const char* name, std::int64_t heads, at::Tensor& bias) {
      bias = bias_of_heads(source.get_if(base + name + ".bias", {heads * value_}), heads);
      return into_heads(source.get(base + name + ".weight", {heads * value_, width}), heads);
    };
    out.q = projection("q_proj", shape().heads, out.q_bias);
    out.k = projection("k_proj", shape().kv_groups, out.k_bias);
    out.v = projection("v_proj", shape().kv_groups, out.v_bias);
  }

  void latent_queries(const std::string& base, double eps, TensorSource& source,
                      AttentionLayer& out) const {
    const std::int64_t heads = shape().heads, width = shape().hidden_size;
    at::Tensor query;
    if (q_rank_ > 0) {
      out.qa = source.get(base + "q_a_proj.weight", {q_rank_, width}).t();
      out.qa_bias = source.get_if(base + "q_a_proj.bias", {q_rank_});
      out.q_latent = {
          Norm::Kind::rms, source.get(base + "q_a_layernorm.weight", {q_rank_}), {}, eps};
      query = source.get(base + "q_b_proj.weight", {heads * (nope_ + rope_), q_rank_});
    } else {
      query = source.get(base + "q_proj.weight", {heads * (nope_ + rope_), width});
    }
    query = into_heads(query, heads);
    out.q = query.narrow(2, 0, latent_key());
    if (shared_key() > 0) out.q_rope = query.narrow(2, nope_, rope_);
  }

  void latent_keys(const std::string& base, double eps, TensorSource& source,
                   AttentionLayer& out) const {
    const std::int64_t heads = shape().heads, width = shape().hidden_size;
    const std::string name = base + "kv_a_proj_with_mqa";
    const at::Tensor down = source.get(name + ".weight", {kv_rank_ + shared_key(), width}).t();
    const at::Tensor bias = source.get_if(name + ".bias", {kv_rank_ + shared_key()});
    out.kva = down.narrow(1, 0, kv_rank_);
    if (bias.defined()) out.kva_bias = bias.narrow(0, 0, kv_rank_);
    if (shared_key() > 0) {
      out.kpe = down.narrow(1, kv_rank_, rope_);
      if (bias.defined()) out.kpe_bias = bias.narrow(0, kv_rank_, rope_);
    }
    out.kv_latent = {
        Norm::Kind::rms, source.get(base + "kv_a_layernorm.weight", {kv_rank_}), {}, eps};
    const at::Tensor up = into_heads(
        source.get(base + "kv_b_proj.weight", {heads * (latent_key() + value_), kv_rank_}), heads);
    out.k = up.narrow(2, 0, latent_key());
    out.v = up.narrow(2, latent_key(), value_);
  }

  void output(const std::string& base, TensorSource& source, AttentionLayer& out) const {
    const std::int64_t heads = shape().heads, width = shape().hidden_size;
    if (out_rank_ == 0) {
      out.o = out_of_heads(source.get(base + "o_proj.weight", {width, heads * value_}), heads);
      out.o_bias = source.get_if(base + "o_proj.bias", {width});
      return;
    }
    const std::int64_t per = heads / out_groups_;
    // [G r, (H/G) d_v] -> [G, r, H/G, d_v] -> [H, d_v, r]
    out.o = source.get(base + "o_a_proj.weight", {out_groups_ * out_rank_, per * value_})
                .view({out_groups_, out_rank_, per, value_})
                .permute({0, 2, 3, 1})
                .reshape({heads, value_, out_rank_});
    out.ob = source.get(base + "o_b_proj.weight", {width, out_groups_ * out_rank_})
                 .t()
                 .reshape({out_groups_, out_rank_, width});
    out.o_bias = source.get_if(base + "o_b_proj.bias", {width});
  }

  /// Width of a head's key that comes from the latent, and of the key that all heads share.
  std::int64_t latent_key() const { return own_rotary_keys_ ? nope_ + rope_ : nope_; }
  std::int64_t shared_key() const { return own_rotary_keys_ ? 0 : rope_; }

  bool rotates_ = true, own_rotary_keys_ = false;
  std::int64_t kv_rank_ = 0, q_rank_ = 0, nope_ = 0, rope_ = 0, value_ = 0;
  std::int64_t out_rank_ = 0, out_groups_ = 1;
};

}  // namespace

std::unique_ptr<Family> make_subspace(FamilyBase::Context context) {
  return std::make_unique<Subspace>(std::move(context));
}

}  // namespace subspace
