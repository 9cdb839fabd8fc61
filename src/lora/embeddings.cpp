#include "lora/embeddings.h"

#include <ATen/ATen.h>

#include <initializer_list>

#include "base/error.h"

namespace subspace {
namespace {

/// Tokens whose products are added up at once.
constexpr std::int64_t kRowsAtOnce = 8192;

/// The first tensor with one of these ends, in their order; empty: none.
std::string tensor_ending(const Checkpoint& model, std::initializer_list<const char*> endings) {
  for (const std::string ending : endings) {
    for (const std::string& name : model.names()) {
      const bool whole = name == ending || name.ends_with("." + ending);
      if (whole && name.find("vision") == std::string::npos) return name;
    }
  }
  return "";
}

at::Tensor decoded(const Checkpoint& model, const std::string& name, std::size_t axes,
                   int threads) {
  const auto& shape = model.info(name).shape;
  if (shape.size() != axes) {
    fail(ErrorCode::InvalidShape, "{}: '{}' has shape {}; expected {}", model.folder().string(),
         name, shape_text(shape), axes == 2 ? "[tokens, width]" : "[width]");
  }
  at::Tensor values = at::empty(shape, at::kDouble);
  model.decode(name, values.data_ptr<double>(), threads);
  return values;
}

/// The norm between the last layer and the logits; kind none where there is none (BERT's stands in
/// its last layer).
Norm final_norm(const Checkpoint& model, int threads) {
  const std::string name = tensor_ending(model, {"model.norm.weight", "ln_f.weight"});
  const bool bare = model.has("norm.weight");
  if (name.empty() && !bare) return {};
  const std::string found = bare ? "norm.weight" : name;
  Norm norm;
  norm.weight = decoded(model, found, 1, threads);
  // Gemma stores gamma - 1.
  if (model.config().value("model_type", "").starts_with("gemma")) norm.weight = norm.weight + 1;
  const std::string bias = found.substr(0, found.size() - std::string("weight").size()) + "bias";
  norm.kind = model.has(bias) ? Norm::Kind::layer : Norm::Kind::rms;
  return norm;
}

/// sum over rows of a^T b in float64.
at::Tensor summed_products(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor sum = at::zeros({a.size(1), b.size(1)}, at::kDouble);
  for (std::int64_t begin = 0; begin < a.size(0); begin += kRowsAtOnce) {
    const std::int64_t count = std::min(kRowsAtOnce, a.size(0) - begin);
    sum.addmm_(a.narrow(0, begin, count).to(at::kDouble).t(),
               b.narrow(0, begin, count).to(at::kDouble));
  }
  return sum;
}

/// Rows through a norm, as its layer reads them or (folded) divided by their length alone.
at::Tensor through(const at::Tensor& rows, const Norm& norm, bool folded) {
  if (norm.kind == Norm::Kind::none) return rows;
  const bool layer = norm.kind == Norm::Kind::layer;
  const at::Tensor centred = layer ? rows - rows.mean(1, true) : rows;
  const at::Tensor lengths = (centred.square().mean(1, true) + norm.eps).sqrt();
  if (folded) return rows / lengths;
  const at::Tensor scaled = centred / lengths * norm.weight;
  return norm.bias.defined() ? scaled + norm.bias : scaled;
}

}  // namespace

TokenTable input_embedding(const Checkpoint& model, int threads) {
  const std::string name =
      tensor_ending(model, {"word_embeddings.weight", "embed_tokens.weight", "wte.weight",
                            "tok_embeddings.weight", "embed.weight"});
  if (name.empty()) {
    fail(ErrorCode::NotFound, "{}: no input embedding among its tensors", model.folder().string());
  }
  return {name, decoded(model, name, 2, threads).to(at::kFloat)};
}

TokenTable output_embedding(const Checkpoint& model, int threads) {
  const std::string name = tensor_ending(model, {"lm_head.weight", "cls.predictions.decoder.weight",
                                                 "embed_out.weight", "head.weight"});
  TokenTable table = name.empty() || model.info(name).shape.size() != 2
                         ? input_embedding(model, threads)
                         : TokenTable{name, decoded(model, name, 2, threads).to(at::kFloat)};
  const Norm norm = final_norm(model, threads);
  if (norm.kind != Norm::Kind::none) {
    table.rows.mul_(norm.weight.to(at::kFloat));
    if (norm.kind == Norm::Kind::layer) table.rows.sub_(table.rows.mean(1, /*keepdim=*/true));
  }
  table.rows.sub_(table.rows.mean(0, /*keepdim=*/true));
  return table;
}

at::Tensor token_map(const TokenTable& input, const TokenTable& output) {
  const std::int64_t tokens = std::min(input.rows.size(0), output.rows.size(0));
  if (input.rows.size(1) != output.rows.size(1)) {
    fail(ErrorCode::InvalidShape, "'{}' is {} wide and '{}' {}; expected one width", input.name,
         input.rows.size(1), output.name, output.rows.size(1));
  }
  return summed_products(output.rows.narrow(0, 0, tokens), input.rows.narrow(0, 0, tokens));
}

at::Tensor embedding_moment(const TokenTable& input, const Norm& norm, bool folded) {
  const at::Tensor read = through(input.rows.to(at::kDouble), norm, folded);
  return summed_products(read, read) / static_cast<double>(read.size(0));
}

}  // namespace subspace
