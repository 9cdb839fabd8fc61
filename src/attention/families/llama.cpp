// Llama, Mistral, Ministral 3, Qwen2, Qwen3: RMSNorm, separate projections, fully rotary heads
// (half layout), grouped keys and values; Qwen2 has biases on q, k, v; Qwen3 norms each head's q
// and k.

#include <cmath>

#include "attention/families/grouped_query.h"

namespace subspace {
namespace {

class Llama final : public GroupedQuery {
 public:
  explicit Llama(Context context) : GroupedQuery(std::move(context), "llama") {
    const RopeConfig rope = read_rope(config());
    require_whole_heads(rope);
    note_query_scaling(rope);
  }

 private:
  AttentionLayer build(std::int64_t layer, TensorSource& source) const override {
    AttentionLayer out = projections(layer, source);
    out.rotary = make_rotary(config(), read_rope(config()), head_dim(), Rotary::Layout::half);
    out.softmax_scale = 1 / std::sqrt(static_cast<double>(head_dim()));
    out.window = sliding_window(layer);
    return out;
  }

  std::int64_t sliding_window(std::int64_t layer) const {
    if (!config().has("sliding_window") || !config().boolean_or("use_sliding_window", true)) {
      return 0;
    }
    if (config().has("layer_types")) {
      const auto types = config().strings("layer_types");
      const auto index = static_cast<std::size_t>(layer);
      if (index < types.size() && types[index] != "sliding_attention") return 0;
    }
    return config().positive_int("sliding_window");
  }
};

}  // namespace

std::unique_ptr<Family> make_llama(FamilyBase::Context context) {
  return std::make_unique<Llama>(std::move(context));
}

}  // namespace subspace
