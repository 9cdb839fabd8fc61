#include "causal/gated_model.h"

#include <ATen/ATen.h>

#include <limits>

#include "attention/family.h"
#include "base/error.h"

namespace subspace {
namespace {

// B rows, H heads, G key/value heads, T tokens, d width, k width of a head.

/// W' - W of MatrixChange; undefined if there is none. Nothing is subtracted where the change is
/// given as one.
at::Tensor change_of(const at::Tensor& weight, const MatrixChange& change) {
  at::Tensor out;
  if (change.a.defined()) out = at::matmul(change.a, change.b);
  if (change.gain.defined()) {
    const at::Tensor gain = change.gain.unsqueeze(1);
    const at::Tensor scaled = weight * (gain - 1);
    out = out.defined() ? scaled + out * gain : scaled;
  }
  if (change.full.defined()) out = out.defined() ? out + change.full : change.full;
  if (out.defined() && out.sizes() != weight.sizes()) {
    fail(ErrorCode::InvalidShape,
         "a change does not have the shape of its matrix; the adapter "
         "belongs to another model");
  }
  return out;
}

/// [B, G, T, k] -> [B, H, T, k]
at::Tensor for_heads(const at::Tensor& x, std::int64_t heads) {
  return x.size(1) == heads ? x : x.repeat_interleave(heads / x.size(1), 1);
}

}  // namespace

GatedModel::GatedModel(const std::filesystem::path& base, const std::vector<LayerChange>& changes,
                       at::ScalarType dtype, int threads)
    : base_(base), dtype_(dtype) {
  nn::Model::Options options;
  options.dtype = dtype;
  model_ = nn::load_model(base, options, threads);
  refuse_other_models();
  const Checkpoint checkpoint(base);
  const auto family = open_family(checkpoint);
  if (static_cast<std::int64_t>(changes.size()) != config().layers) {
    fail(ErrorCode::InvalidShape, "changes of {} layers for a model of {}", changes.size(),
         config().layers);
  }
  for (std::int64_t i = 0; i < config().layers; ++i) {
    layers_.push_back(make_layer(family->load(i, threads), changes[static_cast<std::size_t>(i)]));
    Layer& layer = layers_.back();
    const std::string name = nn::layer_name(config(), i);
    layer.before = {parameter(name + "input_layernorm.weight"), {}, config().norm_eps};
    if (config().feed_forward.width == 0) continue;
    layer.behind = {parameter(name + "post_attention_layernorm.weight"), {}, config().norm_eps};
    auto linear = [&](const char* part) {
      return nn::Linear{parameter(name + "mlp." + part + ".weight"),
                        parameter_if(name + "mlp." + part + ".bias"),
                        {}};
    };
    if (config().feed_forward.gated) layer.gate = linear("gate_proj");
    layer.up = linear("up_proj");
    layer.down = linear("down_proj");
  }
  last_ = {parameter("model.norm.weight"), {}, config().norm_eps};
  rotary_ = nn::RotaryTable(config().attention.rotary, config().positions,
                            at::TensorOptions().dtype(dtype));
}

void GatedModel::refuse_other_models() const {
  const nn::ModelConfig& c = config();
  const char* what = c.task != nn::Task::causal_lm ? "no decoder"
                     : c.attention.is_mla()        ? "one with latent attention (MLA)"
                     : c.attention.shared_output() ? "one with a shared output latent"
                     : c.moe                       ? "a mixture of experts"
                     : c.neuron_experts            ? "one with single-neuron experts"
                     : c.learned_positions         ? "one with learned positions"
                                                   : nullptr;
  if (what == nullptr) return;
  fail(ErrorCode::Unsupported,
       "{}: model_type '{}' is {}; the gated forward runs decoders with MHA, GQA or MQA, rotary "
       "positions and a plain feed-forward part (llama, subspace_decoder)",
       base_.string(), c.model_type, what);
}

at::Tensor GatedModel::parameter_if(const std::string& name) const {
  for (const nn::Parameter& parameter : model_->parameters().all()) {
    for (const nn::Parameter::Part& part : parameter.parts) {
      if (part.name == name) return parameter.value.detach().narrow(0, part.begin, part.rows);
    }
  }
  return {};
}

at::Tensor GatedModel::parameter(const std::string& name) const {
  at::Tensor found = parameter_if(name);
  if (!found.defined()) fail(ErrorCode::Internal, "the model has no tensor '{}'", name);
  return found;
}

GatedModel::Layer GatedModel::make_layer(const AttentionLayer& layer,
                                         const LayerChange& change) const {
  if (change.input || change.q_head || change.k_head) {
    fail(ErrorCode::Unsupported,
         "layer {}: the adapter saved a norm whole (modules_to_save); gates switch changes of "
         "matrices",
         layer.index);
  }
  auto matrix = [this](const at::Tensor& weight, const MatrixChange& given, const at::Tensor& bias,
                       const at::Tensor& bias_change, bool reads) {
    auto narrow = [this](const at::Tensor& x) { return x.defined() ? x.to(dtype_) : x; };
    auto wide = [reads](const at::Tensor& x) {
      if (!x.defined()) return x;
      return reads ? x.transpose(0, 1).flatten(1).contiguous() : x.flatten(0, 1).contiguous();
    };
    Matrix one;
    one.base = narrow(weight).contiguous();
    one.change = narrow(change_of(weight, given));
    one.bias = narrow(bias);
    one.bias_change = narrow(bias_change);
    one.wide_base = wide(one.base);
    one.wide_change = wide(one.change);
    return one;
  };
  Layer out;
  out.q = matrix(layer.q, change.q, layer.q_bias, change.q_bias, true);
  out.k = matrix(layer.k, change.k, layer.k_bias, change.k_bias, true);
  out.v = matrix(layer.v, change.v, layer.v_bias, change.v_bias, true);
  out.o = matrix(layer.o, change.o, layer.o_bias, change.o_bias, false);
  return out;
}

at::Tensor GatedModel::gates(double value) const {
  return at::full({layers(), 6, heads()}, value, at::TensorOptions().dtype(dtype_));
}

GatedModel::Projected GatedModel::project(const Matrix& matrix, const at::Tensor& x) const {
  const std::int64_t groups = matrix.base.size(0);
  auto through = [&](const at::Tensor& wide) {  // [B, T, d] -> [B, G, T, k]
    return at::matmul(x, wide).unflatten(-1, {groups, -1}).transpose(1, 2);
  };
  Projected out;
  out.base = through(matrix.wide_base);
  if (matrix.bias.defined()) out.base = out.base + matrix.bias.unsqueeze(1);
  out.change = matrix.change.defined() ? through(matrix.wide_change) : at::zeros_like(out.base);
  if (matrix.bias_change.defined()) out.change = out.change + matrix.bias_change.unsqueeze(1);
  out.base = for_heads(out.base, heads());
  out.change = for_heads(out.change, heads());
  return out;
}

/// Takes out of a layer's projections what edge gates withhold from single heads. `scale` [B, T, d]
/// is what the norm multiplies the residual stream by.
void GatedModel::withhold(Projected& projected, const Matrix& matrix, const at::Tensor& scale,
                          Mode mode, std::int64_t layer, const std::vector<EdgeGate>& edges,
                          const std::vector<Written>& written) const {
  for (const EdgeGate& edge : edges) {
    if (edge.reader != layer || edge.mode != mode) continue;
    const Written& writer = written.at(static_cast<std::size_t>(edge.writer));
    const at::Tensor& source = edge.route == Route::bn ? writer.base : writer.change;
    const bool to_base = edge.route == Route::nb;
    const at::Tensor& weight = to_base ? matrix.base : matrix.change;
    if (!weight.defined()) continue;
    const std::int64_t group = edge.reader_head / (heads() / weight.size(0));
    const at::Tensor seen = source.select(1, edge.writer_head) * scale * (1 - edge.gate);
    at::Tensor& target = to_base ? projected.base : projected.change;
    target = target.clone();
    target.select(1, edge.reader_head).sub_(at::matmul(seen, weight[group]));
  }
}

at::Tensor GatedModel::attend(std::int64_t index, const at::Tensor& x, const at::Tensor& gates,
                              const std::vector<EdgeGate>& edges,
                              std::vector<Written>& written) const {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  const at::Tensor read = layer.before(x);
  Projected q = project(layer.q, read), k = project(layer.k, read), v = project(layer.v, read);
  if (!edges.empty()) {
    const at::Tensor scale =
        (x.square().mean(-1, true) + config().norm_eps).rsqrt() * layer.before.weight;
    withhold(q, layer.q, scale, Mode::q, index, edges, written);
    withhold(k, layer.k, scale, Mode::k, index, edges, written);
    withhold(v, layer.v, scale, Mode::v, index, edges, written);
  }
  const std::int64_t tokens = x.size(1);
  const nn::RotaryTable table = rotary_.at_positions(tokens, {});
  auto turn = [&](const at::Tensor& y) { return table.rotate(y.transpose(1, 2)).transpose(1, 2); };
  auto gate = [&](GatedTerm term) {
    return gates[index][static_cast<std::int64_t>(term)].view({1, -1, 1, 1});
  };
  const at::Tensor qb = turn(q.base), qn = turn(q.change);
  const at::Tensor kb = turn(k.base).transpose(2, 3), kn = turn(k.change).transpose(2, 3);
  const at::Tensor logits = at::matmul(qb + gate(GatedTerm::q) * qn, kb) +
                            at::matmul(gate(GatedTerm::k) * qb + gate(GatedTerm::qk) * qn, kn);
  const at::Tensor later = at::ones({tokens, tokens}, at::kBool).triu(1);
  const at::Tensor pattern = (logits * config().attention.scale)
                                 .masked_fill(later, -std::numeric_limits<double>::infinity())
                                 .softmax(-1);
  const at::Tensor vb = at::matmul(pattern, v.base), vn = at::matmul(pattern, v.change);
  const at::Tensor z = vb + gate(GatedTerm::v) * vn;
  const at::Tensor z_new = gate(GatedTerm::o) * vb + gate(GatedTerm::vo) * vn;
  if (edges.empty()) {
    auto together = [](const at::Tensor& y) { return y.transpose(1, 2).flatten(2); };
    const at::Tensor out = x + at::matmul(together(z), layer.o.wide_base);
    if (!layer.o.change.defined()) return out;
    return out + at::matmul(together(z_new), layer.o.wide_change);
  }
  Written out;
  out.base = at::matmul(z, layer.o.base);
  out.change =
      layer.o.change.defined() ? at::matmul(z_new, layer.o.change) : at::zeros_like(out.base);
  written.push_back(out);
  return x + out.base.sum(1) + out.change.sum(1);
}

at::Tensor GatedModel::feed_forward(const Layer& layer, const at::Tensor& x) const {
  if (!layer.up.weight.defined()) return x;
  const at::Tensor read = layer.behind(x);
  const at::Tensor up = layer.up(read);
  return x +
         layer.down(layer.gate.weight.defined() ? at::silu(layer.gate(read)) * up : at::gelu(up));
}

at::Tensor GatedModel::hidden(const at::Tensor& tokens, const at::Tensor& gates,
                              const std::vector<EdgeGate>& edges) const {
  if (gates.sizes() != at::IntArrayRef({layers(), 6, heads()})) {
    fail(ErrorCode::Internal, "gates are not [layers, 6, heads]");
  }
  if (tokens.size(1) > config().positions) {
    fail(ErrorCode::InvalidShape,
         "a sequence of {} tokens is longer than the model's {} (max_position_embeddings)",
         tokens.size(1), config().positions);
  }
  at::Tensor x = at::embedding(parameter("model.embed_tokens.weight"), tokens);
  std::vector<Written> written;
  for (std::int64_t i = 0; i < layers(); ++i) {
    const Layer& layer = layers_[static_cast<std::size_t>(i)];
    x = attend(i, x, gates, edges, written);
    if (layer.o.bias.defined()) x = x + layer.o.bias;
    if (layer.o.bias_change.defined()) {
      // No head's own: it comes with the layer's o terms, by their mean gate.
      x = x + layer.o.bias_change * gates[i][static_cast<std::int64_t>(GatedTerm::o)].mean();
    }
    x = feed_forward(layer, x);
  }
  return last_(x);
}

double GatedModel::loss_sum(const at::Tensor& rows, const at::Tensor& targets) const {
  return model_->loss_sum(rows, targets).item<double>();
}

std::unique_ptr<nn::Model> GatedModel::base_model(int threads) const {
  nn::Model::Options options;
  options.dtype = dtype_;
  return nn::load_model(base_, options, threads);
}

std::unique_ptr<nn::Model> GatedModel::merged(int threads) const {
  auto out = base_model(threads);
  auto add = [&](const std::string& name, const at::Tensor& change) {
    if (!change.defined()) return;
    for (const nn::Parameter& parameter : out->parameters().all()) {
      for (const nn::Parameter::Part& part : parameter.parts) {
        if (part.name == name) {
          parameter.value.detach().narrow(0, part.begin, part.rows).add_(change);
        }
      }
    }
  };
  for (std::int64_t i = 0; i < layers(); ++i) {
    const Layer& layer = layers_[static_cast<std::size_t>(i)];
    const std::string base = nn::layer_name(config(), i) + "self_attn.";
    auto into = [&](const char* name, const Matrix& matrix) {
      if (matrix.change.defined()) {
        add(base + name + ".weight", matrix.change.transpose(1, 2).flatten(0, 1));
      }
      if (matrix.bias_change.defined()) add(base + name + ".bias", matrix.bias_change.flatten());
    };
    into("q_proj", layer.q);
    into("k_proj", layer.k);
    into("v_proj", layer.v);
    if (layer.o.change.defined()) {
      add(base + "o_proj.weight", layer.o.change.permute({2, 0, 1}).flatten(1));
    }
    add(base + "o_proj.bias", layer.o.bias_change);
  }
  return out;
}

}  // namespace subspace
