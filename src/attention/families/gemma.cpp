// Gemma, Gemma 2, Gemma 3 (text): norm weights stored as gamma - 1, a head width of its own, a
// softmax scale from query_pre_attn_scalar, a soft cap on logits (2), norms on each head's q and k
// and a rotary base by layer type (3), sliding windows in some layers (2, 3).

#include <cmath>

#include "attention/families/grouped_query.h"

namespace subspace {
namespace {

class Gemma final : public GroupedQuery {
 public:
  /// Released configurations of Gemma 3 leave out what is as in its class; the first Gemma's class
  /// has other numbers.
  Gemma(Context context, bool first)
      : GroupedQuery(std::move(context), "gemma",
                     first ? HeadDefaults{16, 16, 256} : HeadDefaults{8, 4, 256}) {
    for (std::int64_t layer = 0; layer < shape().layers; ++layer) require_whole_heads(rope(layer));
  }

 private:
  bool sliding(std::int64_t layer) const {
    const std::string& type = model_type();
    if (type == "gemma") return false;
    if (config().has("layer_types")) {
      const auto types = config().strings("layer_types");
      if (layer >= static_cast<std::int64_t>(types.size())) {
        fail(ErrorCode::InvalidValue, "{}: layer_types has {} entries; expected {}, one a layer",
             config().where(), types.size(), shape().layers);
      }
      return types[static_cast<std::size_t>(layer)] == "sliding_attention";
    }
    const std::int64_t pattern =
        config().positive_int_or("sliding_window_pattern", type == "gemma2" ? 2 : 6);
    return (layer + 1) % pattern != 0;
  }

  RopeConfig rope(std::int64_t layer) const {
    if (model_type() != "gemma3_text") return read_rope(config());
    const bool local = sliding(layer);
    // The older spelling has one base for each kind of layer, and scales the global ones only.
    if (!config().has("rope_parameters") && local) {
      RopeConfig plain;
      plain.theta = config().number_or("rope_local_base_freq", 10000);
      return plain;
    }
    return read_rope(config(), local ? 10000 : 1000000,
                     local ? "sliding_attention" : "full_attention");
  }

  AttentionLayer build(std::int64_t layer, TensorSource& source) const override {
    AttentionLayer out = projections(layer, source, /*unit_offset=*/true);
    if (model_type() != "gemma") {
      out.output = out.input;
      out.output.weight = source.get(fmt::format("{}layers.{}.post_attention_layernorm.weight",
                                                 decoder_prefix(), layer),
                                     {shape().hidden_size}) +
                          1;
    }
    const double scalar = model_type() == "gemma"
                              ? static_cast<double>(head_dim())
                              : config().number_or("query_pre_attn_scalar", 256);
    out.rotary = make_rotary(config(), rope(layer), head_dim(), Rotary::Layout::half);
    out.softmax_scale = 1 / std::sqrt(scalar);
    // A field that is null says that there is no cap, an absent one leaves it to the class.
    const bool usual =
        model_type() == "gemma2" && !config().json().contains("attn_logit_softcapping");
    out.logit_softcap = usual ? 50 : config().number_or("attn_logit_softcapping", 0);
    if (sliding(layer)) out.window = config().positive_int_or("sliding_window", 4096);
    out.causal = !config().boolean_or("use_bidirectional_attention", false);
    return out;
  }
};

}  // namespace

std::unique_ptr<Family> make_gemma(FamilyBase::Context context) {
  const bool first = context.model_type == "gemma";
  return std::make_unique<Gemma>(std::move(context), first);
}

}  // namespace subspace
