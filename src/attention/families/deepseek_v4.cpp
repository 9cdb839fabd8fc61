// DeepSeek-V4: queries through a latent, one key/value head that is key and value of every query
// head, rotation on the trailing slice of the head and undone on attention's output, sinks, and an
// output projection in two steps: o_a, one block a group of heads (rows g r .. (g+1) r of
// [G r, H d_h / G]), then o_b, which all groups share. Its files carry the maker's names
// (layers.N.attn.wq_a ...) or transformers' (self_attn.q_a_proj ...).

#include <cmath>

#include "attention/family_base.h"

namespace subspace {
namespace {

constexpr const char* kSliding = "sliding_attention";
constexpr const char* kSparse = "compressed_sparse_attention";
constexpr const char* kHeavy = "heavily_compressed_attention";

/// Names of one layer's tensors, whole.
struct Names {
  std::string input_norm, q_a, q_a_norm, q_b, kv, kv_norm, o_a, o_b, sinks;
};

Names transformers_names(const std::string& block) {
  const std::string a = block + "self_attn.";
  return {.input_norm = block + "input_layernorm.weight",
          .q_a = a + "q_a_proj.weight",
          .q_a_norm = a + "q_a_norm.weight",
          .q_b = a + "q_b_proj.weight",
          .kv = a + "kv_proj.weight",
          .kv_norm = a + "kv_norm.weight",
          .o_a = a + "o_a_proj.weight",
          .o_b = a + "o_b_proj.weight",
          .sinks = a + "sinks"};
}

Names makers_names(const std::string& block, const Checkpoint& checkpoint) {
  const std::string a = block + "attn.";
  // What transformers writes in the maker's naming calls it "norm".
  const bool short_name = checkpoint.has(a + "norm.weight");
  return {.input_norm = block + "attn_norm.weight",
          .q_a = a + "wq_a.weight",
          .q_a_norm = a + "q_norm.weight",
          .q_b = a + "wq_b.weight",
          .kv = a + "wkv.weight",
          .kv_norm = a + (short_name ? "norm.weight" : "kv_norm.weight"),
          .o_a = a + "wo_a.weight",
          .o_b = a + "wo_b.weight",
          .sinks = a + "attn_sink"};
}

class DeepSeekV4 final : public FamilyBase {
 public:
  explicit DeepSeekV4(Context context) : FamilyBase(std::move(context), "deepseek_v4") {
    read_usual_shape({.groups = 1});
    ModelShape& shape = shape_to_fill();
    if (shape.kv_groups != 1) {
      fail(ErrorCode::Unsupported,
           "{}: num_key_value_heads is {}; expected 1, the head that all query heads share",
           config().where(), shape.kv_groups);
    }
    shape.attention = "grouped output latent";
    head_ = config().positive_int("head_dim");
    q_rank_ = config().positive_int("q_lora_rank");
    out_groups_ = config().positive_int("o_groups");
    out_rank_ = config().positive_int("o_lora_rank");
    rope_ = rotary_dims();
    if (shape.heads % out_groups_ != 0) {
      fail(ErrorCode::InvalidValue, "{}: num_attention_heads {} is not a multiple of o_groups {}",
           config().where(), shape.heads, out_groups_);
    }
    shape.dims = {{"head_dim", head_},
                  {"o_groups", out_groups_},
                  {"o_lora_rank", out_rank_},
                  {"q_lora_rank", q_rank_},
                  {"qk_rope_head_dim", rope_}};
    makers_ = checkpoint().has(prefix() + "layers.0.attn.wq_a.weight");
    base_ = makers_ ? prefix() : decoder_prefix();
    read_types();
    if (makers_) find_extra_layers([this](std::int64_t layer) { return names(layer).q_a; });
    note_what_is_left_out();
  }

 private:
  std::int64_t rotary_dims() const {
    if (config().has("qk_rope_head_dim")) return config().int_in("qk_rope_head_dim", 2, head_);
    double factor = config().number_or("partial_rotary_factor", 64.0 / 512);
    if (const auto parameters = config().object_if("rope_parameters")) {
      if (const auto main = parameters->object_if("main")) {
        factor = main->number_or("partial_rotary_factor", factor);
      }
    }
    if (!(factor > 0 && factor <= 1)) {
      fail(ErrorCode::InvalidValue,
           "{}: partial_rotary_factor is {}; expected more than 0, up to 1", config().where(),
           factor);
    }
    return static_cast<std::int64_t>(static_cast<double>(head_) * factor);
  }

  /// The kind of each layer: layer_types, or compress_ratios (0, 4, 128; the prediction layers'
  /// too), or the pattern of the class.
  void read_types() {
    const auto layers = static_cast<std::size_t>(shape().layers);
    if (config().has("layer_types")) {
      types_ = config().strings("layer_types");
      for (const std::string& type : types_) {
        if (type == kSliding || type == kSparse || type == kHeavy) continue;
        fail(ErrorCode::Unsupported, "{}: layer_types has '{}'; known are {}, {} and {}",
             config().where(), type, kSliding, kSparse, kHeavy);
      }
    } else if (config().has("compress_ratios")) {
      const Json& ratios = config().json().at("compress_ratios");
      for (const Json& ratio : ratios) {
        if (ratio == 0) {
          types_.emplace_back(kSliding);
        } else if (ratio == 4 || ratio == 128) {
          types_.emplace_back(ratio == 4 ? kSparse : kHeavy);
        } else {
          fail(ErrorCode::InvalidValue, "{}: compress_ratios has {}; expected 0, 4 and 128",
               config().where(), ratio.dump().substr(0, 40));
        }
      }
    } else {
      for (std::size_t i = 0; i < layers; ++i) {
        types_.emplace_back(i >= 2 && i % 2 == 1 ? kSparse : kHeavy);
      }
    }
    if (types_.size() < layers) {
      fail(ErrorCode::InvalidValue, "{}: {} has {} entries; expected {}, one a layer",
           config().where(), config().has("layer_types") ? "layer_types" : "compress_ratios",
           types_.size(), layers);
    }
  }

  void note_what_is_left_out() {
    ModelShape& shape = shape_to_fill();
    std::int64_t compressed = 0;
    for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
      compressed += type(layer) != kSliding;
    }
    if (compressed > 0) {
      shape.notes.push_back(fmt::format(
          "{} of {} layers have a compressor, which adds keys of whole windows of tokens; it and "
          "its indexer are not analysed",
          compressed, shape.layers));
    }
    shape.notes.push_back(
        "the residual is several streams; attention reads and writes a mixture of them, which is "
        "not part of the maps");
    shape.notes.push_back(
        "values are the rotated keys, turned back on attention's output: VO is the map of a token "
        "to itself (offset 0)");
  }

  /// Prediction layers beyond the list slide.
  std::string type(std::int64_t layer) const {
    const auto index = static_cast<std::size_t>(layer);
    return index < types_.size() ? types_[index] : kSliding;
  }

  Names names(std::int64_t layer) const {
    if (!makers_) return transformers_names(fmt::format("{}layers.{}.", base_, layer));
    const std::int64_t extra = layer - shape().layers;
    return makers_names(extra < 0 ? fmt::format("{}layers.{}.", base_, layer)
                                  : fmt::format("{}mtp.{}.", base_, extra),
                        checkpoint());
  }

  /// Layers with a compressor have a rotary base of their own, and they alone are scaled.
  RopeConfig rope(bool sliding) const {
    const double theta = config().number_or("rope_theta", 10000);
    if (const auto given = config().object_if("rope_parameters")) {
      if (given->has("main") && given->has("compress")) {
        return read_rope(config(), theta, sliding ? "main" : "compress");
      }
    }
    RopeConfig plain;
    plain.theta = theta;
    if (sliding) return plain;
    RopeConfig scaled = read_rope(config());
    scaled.theta = config().number_or("compress_rope_theta", 160000);
    // Its code multiplies cos and sin by nothing, whatever YaRN suggests.
    if (scaled.type == "yarn" && !scaled.scaling->contains("attention_factor")) {
      (*scaled.scaling)["attention_factor"] = 1;
    }
    return scaled;
  }

  AttentionLayer build(std::int64_t layer, TensorSource& source) const override {
    const std::int64_t heads = shape().heads, width = shape().hidden_size;
    const std::int64_t together = heads / out_groups_;
    const Names name = names(layer);
    const double eps = config().number_or("rms_norm_eps", 1e-6);
    auto rms = [&](const std::string& tensor, std::int64_t size) {
      return Norm{Norm::Kind::rms, source.get(tensor, {size}), {}, eps};
    };
    AttentionLayer out;
    out.input = rms(name.input_norm, width);
    out.qa = source.get(name.q_a, {q_rank_, width}).t();
    out.q_latent = rms(name.q_a_norm, q_rank_);
    out.q = into_heads(source.get(name.q_b, {heads * head_, q_rank_}), heads);
    out.q_head = {Norm::Kind::rms, {}, {}, eps};
    out.k = into_heads(source.get(name.kv, {head_, width}), 1);
    out.k_head = rms(name.kv_norm, head_);
    out.v = out.k;
    out.values_share_key = true;
    // [G r, (H/G) d_h] -> [G, r, H/G, d_h] -> [H, d_h, r]: no strides of the stored matrix do that.
    const at::Tensor down = source.get(name.o_a, {out_groups_ * out_rank_, together * head_});
    out.o = down.view({out_groups_, out_rank_, together, head_})
                .permute({0, 2, 3, 1})
                .reshape({heads, head_, out_rank_});
    out.ob = out_of_heads(source.get(name.o_b, {width, out_groups_ * out_rank_}), out_groups_);
    out.sinks = source.get(name.sinks, {heads});

    const bool sliding = type(layer) == kSliding;
    out.rotary = make_rotary(config(), rope(sliding), rope_, Rotary::Layout::interleaved);
    out.rotary.begin = head_ - rope_;
    out.softmax_scale = 1 / std::sqrt(static_cast<double>(head_));
    out.window = config().positive_int_or("sliding_window", 128);
    return out;
  }

  bool makers_;
  std::string base_;  ///< in front of "layers.L."
  std::vector<std::string> types_;
  std::int64_t head_, q_rank_, out_groups_, out_rank_, rope_;
};

}  // namespace

std::unique_ptr<Family> make_deepseek_v4(FamilyBase::Context context) {
  return std::make_unique<DeepSeekV4>(std::move(context));
}

}  // namespace subspace
