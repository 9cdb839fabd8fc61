// Multi-head latent attention: DeepSeek-V2, V3 (R1, Kimi-K2, the language model of Kimi-K2.5),
// V3.2, GLM-5, GLM-4.7-Flash, MiniCPM3, Mistral Small 4, LongCat-Flash. Rows of kv_b_proj are
// interleaved per head: head i owns qk_nope_head_dim rows of keys, then v_head_dim rows of values.
// The last qk_rope_head_dim rows of kv_a_proj_with_mqa are the one rotary key head.

#include <algorithm>
#include <cmath>
#include <map>

#include "attention/family_base.h"

namespace subspace {
namespace {

/// In what the classes differ that a configuration may not say.
struct Variant {
  enum class Pairs { interleaved, half, as_configured };
  Pairs pairs = Pairs::as_configured;  ///< as_configured: rope_interleave, true where absent
  double eps = 1e-6;                   ///< rms_norm_eps where absent
  double theta = 10000;                ///< rope_theta where absent
  bool paired = false;                 ///< two attentions a decoder layer, latents scaled (LongCat)
};

Variant variant_of(const std::string& model_type) {
  using enum Variant::Pairs;
  static const std::map<std::string, Variant> special = {
      {"deepseek_v2", {.pairs = interleaved}},
      {"deepseek_v32", {.pairs = interleaved}},
      {"glm4_moe_lite", {.eps = 1e-5}},
      {"glm_moe_dsa", {.pairs = interleaved, .eps = 1e-5}},
      {"longcat_flash", {.pairs = interleaved, .eps = 1e-5, .theta = 1e7, .paired = true}},
      {"minicpm3", {.pairs = half, .eps = 1e-5}},
  };
  const auto found = special.find(model_type);
  return found == special.end() ? Variant{} : found->second;
}

class DeepSeek final : public FamilyBase {
 public:
  explicit DeepSeek(Context context)
      : FamilyBase(std::move(context), "deepseek"), variant_(variant_of(model_type())) {
    read_usual_shape({}, variant_.paired ? "num_layers" : "num_hidden_layers");
    ModelShape& shape = shape_to_fill();
    // The configuration's num_key_value_heads is a leftover: every head has its own keys.
    shape.kv_groups = shape.heads;
    shape.attention = "MLA";
    kv_rank_ = config().positive_int("kv_lora_rank");
    q_rank_ = config().positive_int_or("q_lora_rank", 0);
    nope_ = config().positive_int("qk_nope_head_dim");
    rope_ = config().positive_int("qk_rope_head_dim");
    value_ = config().has("v_head_dim") || model_type() != "minicpm3"
                 ? config().positive_int("v_head_dim")
                 : std::max<std::int64_t>(1, shape.hidden_size / shape.heads);
    shape.dims = {{"kv_lora_rank", kv_rank_},
                  {"qk_nope_head_dim", nope_},
                  {"qk_rope_head_dim", rope_},
                  {"v_head_dim", value_}};
    if (q_rank_ > 0) shape.dims["q_lora_rank"] = q_rank_;
    if (q_rank_ == 0) shape.notes.push_back("q_lora_rank is null: queries are not compressed");
    base_ = decoder_prefix(variant_.paired ? "input_layernorm.0.weight" : "input_layernorm.weight");
    check_rope();
    if (config().has("index_topk")) {
      shape.notes.push_back(
          fmt::format("a sparse indexer lets each query see {} keys at most; it is not analysed",
                      config().positive_int("index_topk")));
    }
    if (variant_.paired) {
      take_pairs();
    } else {
      find_extra_layers(
          [this](std::int64_t layer) { return names(layer).attention + "kv_b_proj.weight"; });
    }
  }

 private:
  struct Names {
    std::string attention, input_norm;
  };

  Names names(std::int64_t layer) const {
    if (!variant_.paired) {
      const std::string block = fmt::format("{}layers.{}.", base_, layer);
      return {block + "self_attn.", block + "input_layernorm.weight"};
    }
    const std::string block = fmt::format("{}layers.{}.", base_, layer / 2);
    return {fmt::format("{}self_attn.{}.", block, layer % 2),
            fmt::format("{}input_layernorm.{}.weight", block, layer % 2)};
  }

  /// LongCat: a decoder layer holds two attentions, and each is a layer here.
  void take_pairs() {
    ModelShape& shape = shape_to_fill();
    config().positive_int("q_lora_rank");
    for (const char* field : {"mla_scale_q_lora", "mla_scale_kv_lora"}) {
      if (config().boolean_or(field, true)) continue;
      fail(ErrorCode::Unsupported, "{}: {} is false; expected true or no such field, as released",
           config().where(), field);
    }
    shape.notes.push_back(fmt::format(
        "layers 2 L and 2 L + 1 are the two attentions of decoder layer L of {}", shape.layers));
    shape.layers *= 2;
    const std::string extra = prefix() + "model.mtp.";
    const auto& all = checkpoint().names();
    const auto found = std::lower_bound(all.begin(), all.end(), extra);
    if (found != all.end() && found->starts_with(extra)) {
      shape.notes.push_back("multi-token-prediction tensors (model.mtp.*) are not read");
    }
  }

  /// Rotation covers the rotary part of a head, which a partial_rotary_factor can only repeat.
  void check_rope() {
    const RopeConfig rope = read_rope(config(), variant_.theta);
    note_query_scaling(rope);
    if (model_type() != "mistral4") return require_whole_heads(rope);
    if (!rope.scaling) {
      fail(ErrorCode::NotFound, "{}: no field 'rope_parameters', which a mistral4 needs",
           config().where());
    }
    const double factor = rope.partial_rotary_factor;
    const auto rotated = static_cast<std::int64_t>(static_cast<double>(nope_ + rope_) * factor);
    if (factor != 1 && rotated != rope_) {
      fail(ErrorCode::InvalidValue,
           "{}: partial_rotary_factor {} of heads of {} is {}; expected qk_rope_head_dim, {}",
           config().where(), factor, nope_ + rope_, rotated, rope_);
    }
  }

  bool interleaved() const {
    if (variant_.pairs != Variant::Pairs::as_configured) {
      return variant_.pairs == Variant::Pairs::interleaved;
    }
    return config().boolean_or("rope_interleave", true);
  }

  AttentionLayer build(std::int64_t layer, TensorSource& source) const override {
    const std::int64_t heads = shape().heads;
    const std::int64_t width = shape().hidden_size;
    const auto [attention, input_norm] = names(layer);
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
    out.input = {Norm::Kind::rms,
                 source.get(input_norm, {width}),
                 {},
                 config().number_or("rms_norm_eps", variant_.eps)};
    if (variant_.paired) {
      out.q_latent_scale = std::sqrt(static_cast<double>(width) / static_cast<double>(q_rank_));
      out.kv_latent_scale = std::sqrt(static_cast<double>(width) / static_cast<double>(kv_rank_));
    }

    const RopeConfig rope = read_rope(config(), variant_.theta);
    out.rotary = make_rotary(config(), rope, rope_,
                             interleaved() ? Rotary::Layout::interleaved : Rotary::Layout::half);
    out.softmax_scale = yarn_softmax_factor(rope) / std::sqrt(static_cast<double>(nope_ + rope_));
    return out;
  }

  Variant variant_;
  std::string base_;  ///< in front of "layers.L."
  std::int64_t kv_rank_, q_rank_, nope_, rope_, value_;
};

}  // namespace

std::unique_ptr<Family> make_deepseek(FamilyBase::Context context) {
  return std::make_unique<DeepSeek>(std::move(context));
}

}  // namespace subspace
