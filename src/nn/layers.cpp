#include "nn/layers.h"

#include <ATen/ATen.h>

#include "nn/fused.h"

namespace subspace::nn {

at::Tensor Linear::operator()(const at::Tensor& x) const {
  if (!fused(x)) return adapted(x, at::linear(x, weight, bias));
  const at::Tensor y = adapted(x, fused_linear(x, weight));
  return bias.defined() ? y + bias : y;
}

at::Tensor Linear::without_bias(const at::Tensor& x) const {
  return adapted(x, fused(x) ? fused_linear(x, weight) : at::linear(x, weight));
}

at::Tensor Linear::adapted(const at::Tensor& x, const at::Tensor& y) const {
  if (adapters.empty()) return y;
  std::vector<at::Tensor> pieces;
  std::int64_t end = 0;
  auto unchanged_to = [&](std::int64_t row) {
    if (row > end) pieces.push_back(y.narrow(-1, end, row - end));
  };
  for (const auto& [begin, change] : adapters) {
    unchanged_to(begin);
    end = begin + change.b.size(0);
    pieces.push_back(y.narrow(-1, begin, end - begin) +
                     at::linear(at::linear(x, change.a), change.b) * change.scale);
  }
  unchanged_to(y.size(-1));
  return pieces.size() == 1 ? pieces[0] : at::cat(pieces, -1);
}

Linear joined_linear(Parameters& parameters, const std::vector<Rows>& parts, std::int64_t in,
                     bool bias) {
  std::vector<Parameters::Named> weights, biases;
  for (const Rows& part : parts) {
    weights.push_back({part.name + ".weight", {part.rows, in}});
    biases.push_back({part.name + ".bias", {part.rows}});
  }
  Linear out;
  out.weight = parameters.weights(weights);
  if (bias) out.bias = parameters.bias(biases);
  std::int64_t begin = 0;
  for (const Rows& part : parts) {
    LowRankRows change = parameters.adapter(part.name, part.rows, in);
    if (change.a.defined()) out.adapters.push_back({begin, std::move(change)});
    begin += part.rows;
  }
  return out;
}

Linear linear(Parameters& parameters, const std::string& name, std::int64_t out, std::int64_t in,
              bool bias) {
  return joined_linear(parameters, {{name, out}}, in, bias);
}

at::Tensor NormLayer::operator()(const at::Tensor& x) const {
  const std::int64_t width[] = {weight.size(-1)};
  if (!bias.defined() && fused(x) && norm_fits(x)) return fused_norm(x, weight, eps);
  return bias.defined() ? at::layer_norm(x, width, weight, bias, eps)
                        : at::rms_norm(x, width, weight, eps);
}

at::Tensor NormLayer::operator()(Residual& residual) const {
  if (!residual.delta.defined()) return (*this)(residual.x);
  if (!bias.defined() && fused(residual.x) && norm_fits(residual.x)) {
    auto [sum, normed] = fused_add_norm(residual.x, residual.delta, residual.bias, weight, eps);
    residual = {sum, {}, {}};
    return normed;
  }
  residual = {residual.sum(), {}, {}};
  return (*this)(residual.x);
}

at::Tensor chosen_rows(const at::Tensor& x, const at::Tensor& rows) {
  return rows.defined() ? x.flatten(0, 1).index_select(0, rows).unsqueeze(0) : x;
}

at::Tensor Residual::sum() const {
  if (!delta.defined()) return x;
  return x + (bias.defined() ? delta + bias : delta);
}

NormLayer norm_layer(Parameters& parameters, const std::string& name, std::int64_t width,
                     double eps, bool layer) {
  NormLayer out;
  out.eps = eps;
  out.weight = parameters.norm(name + ".weight", {width});
  if (layer) out.bias = parameters.bias({{name + ".bias", {width}}});
  return out;
}

RotaryTable::RotaryTable(const Rotary& rotary, std::int64_t positions,
                         const at::TensorOptions& options)
    : layout_(rotary.layout), begin_(rotary.begin), dims_(rotary.dims) {
  if (layout_ == Rotary::Layout::none) return;
  // Angles in double precision whatever the model's: at position 1000 a float32 product is off in
  // the fourth digit of the cosine.
  const at::Tensor angles =
      at::outer(at::arange(positions, at::kDouble), at::tensor(rotary.frequencies, at::kDouble));
  const bool wide = options.dtype() == at::kDouble;
  const at::TensorOptions kept = options.dtype(wide ? at::kDouble : at::kFloat);
  cos_ = (angles.cos() * rotary.scale).to(kept);
  sin_ = (angles.sin() * rotary.scale).to(kept);
}

RotaryTable RotaryTable::at_positions(std::int64_t tokens, const at::Tensor& positions) const {
  RotaryTable out = *this;
  if (layout_ == Rotary::Layout::none) return out;
  // [T, 1, dims/2], or [B, T, 1, dims/2]: one axis for the heads.
  auto rows = [&](const at::Tensor& table) {
    if (!positions.defined()) return table.narrow(0, 0, tokens).unsqueeze(1);
    return at::embedding(table, positions).unsqueeze(2);
  };
  out.cos_ = rows(cos_);
  out.sin_ = rows(sin_);
  return out;
}

at::Tensor RotaryTable::rotate(const at::Tensor& x) const {
  if (layout_ == Rotary::Layout::none) return x;
  const std::int64_t width = x.size(-1);
  const at::Tensor part = dims_ == width ? x : x.narrow(-1, begin_, dims_);
  at::Tensor a, b;
  if (layout_ == Rotary::Layout::half) {
    a = part.narrow(-1, 0, dims_ / 2);
    b = part.narrow(-1, dims_ / 2, dims_ / 2);
  } else {
    a = part.slice(-1, 0, dims_, 2);
    b = part.slice(-1, 1, dims_, 2);
  }
  std::vector<at::Tensor> pieces;
  if (begin_ > 0) pieces.push_back(x.narrow(-1, 0, begin_));
  pieces.push_back((a * cos_ - b * sin_).to(x.scalar_type()));
  pieces.push_back((a * sin_ + b * cos_).to(x.scalar_type()));
  const std::int64_t rest = width - begin_ - dims_;
  if (rest > 0) pieces.push_back(x.narrow(-1, width - rest, rest));
  return at::cat(pieces, -1);
}

}  // namespace subspace::nn
