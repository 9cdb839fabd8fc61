#include "attention/families/encoders.h"

#include <fmt/ranges.h>

#include <cmath>

namespace subspace {

std::int64_t even_head_dim(const ModelShape& shape, const std::string& where) {
  if (shape.hidden_size % shape.heads != 0) {
    fail(ErrorCode::InvalidValue, "{}: width {} is not a multiple of the {} heads", where,
         shape.hidden_size, shape.heads);
  }
  return shape.hidden_size / shape.heads;
}

AttentionLayer encoder_layer(const ModelShape& shape, const EncoderNames& names, double eps,
                             TensorSource& source) {
  const std::int64_t width = shape.hidden_size;
  const std::int64_t heads = shape.heads;
  auto weight = [&](const std::string& name) {
    return source.get(name + ".weight", {width, width});
  };
  auto bias = [&](const std::string& name) { return source.get_if(name + ".bias", {width}); };
  AttentionLayer out;
  out.q = into_heads(weight(names.query), heads);
  out.k = into_heads(weight(names.key), heads);
  out.v = into_heads(weight(names.value), heads);
  out.o = out_of_heads(weight(names.output), heads);
  out.q_bias = bias_of_heads(bias(names.query), heads);
  out.k_bias = bias_of_heads(bias(names.key), heads);
  out.v_bias = bias_of_heads(bias(names.value), heads);
  out.o_bias = bias(names.output);
  auto norm = [&](const std::string& name) {
    return Norm{Norm::Kind::layer, source.get(name + ".weight", {width}),
                source.get(name + ".bias", {width}), eps};
  };
  out.input = norm(names.input_norm);
  if (!names.output_norm.empty()) out.output = norm(names.output_norm);
  out.softmax_scale = 1 / std::sqrt(static_cast<double>(width / heads));
  out.causal = false;
  return out;
}

std::string find_prefix(const Checkpoint& checkpoint, const std::vector<std::string>& prefixes,
                        const std::string& tensor) {
  for (const std::string& prefix : prefixes) {
    if (checkpoint.has(prefix + tensor)) return prefix;
  }
  fail(ErrorCode::NotFound, "{}: no tensor '{}' under any of the prefixes '{}'",
       checkpoint.folder().string(), tensor, fmt::join(prefixes, "', '"));
}

}  // namespace subspace
