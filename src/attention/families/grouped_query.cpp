#include "attention/families/grouped_query.h"

#include <ATen/ATen.h>

namespace subspace {

GroupedQuery::GroupedQuery(Context context, const char* family, const HeadDefaults& defaults)
    : FamilyBase(std::move(context), family) {
  read_usual_shape({defaults.heads, defaults.groups});
  ModelShape& shape = shape_to_fill();
  if (config().has("head_dim") || defaults.head_dim > 0) {
    head_dim_ = config().positive_int_or("head_dim", defaults.head_dim);
  } else {
    if (shape.hidden_size % shape.heads != 0) {
      fail(ErrorCode::InvalidValue,
           "{}: hidden_size {} is not a multiple of num_attention_heads {}, and there is no "
           "head_dim",
           config().where(), shape.hidden_size, shape.heads);
    }
    head_dim_ = shape.hidden_size / shape.heads;
  }
  shape.dims = {{"head_dim", head_dim_}};
}

AttentionLayer GroupedQuery::projections(std::int64_t layer, TensorSource& source,
                                         bool unit_offset) const {
  const ModelShape& model = shape();
  const std::string base = fmt::format("{}layers.{}.", decoder_prefix(), layer);
  const std::string attention = base + "self_attn.";
  const double eps = config().number_or("rms_norm_eps", 1e-6);
  auto projection = [&](const char* name, std::int64_t heads) {
    return into_heads(
        source.get(attention + name + ".weight", {heads * head_dim_, model.hidden_size}), heads);
  };
  auto bias = [&](const char* name, std::int64_t heads) {
    return bias_of_heads(source.get_if(attention + name + ".bias", {heads * head_dim_}), heads);
  };
  auto norm = [&](const at::Tensor& weight) {
    return Norm{Norm::Kind::rms, unit_offset ? weight + 1 : weight, {}, eps};
  };

  AttentionLayer out;
  out.q = projection("q_proj", model.heads);
  out.k = projection("k_proj", model.kv_groups);
  out.v = projection("v_proj", model.kv_groups);
  out.o = out_of_heads(
      source.get(attention + "o_proj.weight", {model.hidden_size, model.heads * head_dim_}),
      model.heads);
  out.q_bias = bias("q_proj", model.heads);
  out.k_bias = bias("k_proj", model.kv_groups);
  out.v_bias = bias("v_proj", model.kv_groups);
  out.o_bias = source.get_if(attention + "o_proj.bias", {model.hidden_size});
  out.input = norm(source.get(base + "input_layernorm.weight", {model.hidden_size}));
  if (source.has(attention + "q_norm.weight")) {
    out.q_head = norm(source.get(attention + "q_norm.weight", {head_dim_}));
    out.k_head = norm(source.get(attention + "k_norm.weight", {head_dim_}));
  }
  return out;
}

}  // namespace subspace
