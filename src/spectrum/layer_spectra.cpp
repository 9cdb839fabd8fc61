#include "spectrum/layer_spectra.h"

#include <ATen/ATen.h>

#include "attention/fused.h"
#include "base/error.h"
#include "spectrum/eigenvalues.h"
#include "spectrum/gram.h"

namespace subspace {
namespace {

/// The smaller Gram matrix of one matrix [m, n].
at::Tensor smaller_gram(const at::Tensor& x) {
  return x.size(0) >= x.size(1) ? gram_of_columns(x) : gram_of_columns(x.t());
}

class LayerSpectra {
 public:
  LayerSpectra(const AttentionLayer& layer, const SpectraOptions& options)
      : layer_(layer), options_(options), heads_(layer.heads()), groups_(layer.groups()) {}

  std::vector<MapSpectra> all() {
    reading("Q", layer_.q);
    if (layer_.q_rope.defined()) reading("Qpe", layer_.q_rope);
    reading("K", layer_.k);
    reading("V", layer_.v);
    writing();
    shared("QA", layer_.qa);
    shared("KVA", layer_.kva);
    shared("Kpe", layer_.kpe);
    if (layer_.ob.defined()) shared("OB", layer_.ob.flatten(0, 1));
    values_to_output();
    queries_to_keys();
    if (layer_.rotary.layout != Rotary::Layout::none) {
      for (const std::int64_t delta : options_.offsets) at_offset(delta);
    }
    return std::move(out_);
  }

 private:
  void add(MapSpectra spectra) {
    if (spectra.heads.defined()) spectra.heads = spectra.heads.to(at::kCPU).contiguous();
    if (spectra.stack.defined()) spectra.stack = spectra.stack.to(at::kCPU).contiguous();
    out_.push_back(std::move(spectra));
  }

  /// Singular values of each [m, n] of [H, m, n].
  at::Tensor of_heads(const at::Tensor& x) const {
    if (options_.exact) return at::linalg_svdvals(x);
    return singular_values_of_gram(gram_of_heads(x.size(1) >= x.size(2) ? x : x.transpose(1, 2)));
  }

  at::Tensor of_matrix(const at::Tensor& x) const {
    if (options_.exact) return at::linalg_svdvals(x);
    return singular_values_of_gram(smaller_gram(x));
  }

  /// Singular values of each left_i right_i^T; left [H, m, k], right [H, n, k].
  at::Tensor of_products(const Factored& f) const {
    if (options_.exact) {
      const auto n = std::min({f.left.size(1), f.left.size(2), f.right.size(2)});
      return at::linalg_svdvals(at::matmul(f.left, f.right)).narrow(-1, 0, n);
    }
    const at::Tensor factor = psd_factor(gram_of_heads(f.left));
    const at::Tensor core = at::matmul(factor.transpose(1, 2),
                                       at::matmul(gram_of_heads(f.right.transpose(1, 2)), factor));
    const auto n = std::min({f.left.size(1), f.left.size(2), f.right.size(2)});
    return singular_values_of_gram(core).narrow(-1, 0, n);
  }

  /// Factor of each head before stacking, from its singular values [H, n] -> [H].
  at::Tensor head_factors(const at::Tensor& values) const {
    at::Tensor size;
    switch (options_.normalize) {
      case HeadScaling::none:
        return at::ones({values.size(0)}, values.options());
      case HeadScaling::spectral:
        size = values.select(1, 0);
        break;
      case HeadScaling::frobenius:
        size = values.square().sum(1).sqrt();
        break;
    }
    // A zero head stays zero.
    return at::where(size > 0, size.reciprocal(), at::zeros_like(size));
  }

  /// [H, m, n] with each head multiplied by its factor; no copy where nothing changes.
  at::Tensor scaled(const at::Tensor& x, const at::Tensor& values) const {
    if (options_.normalize == HeadScaling::none) return x;
    return x * head_factors(values).view({-1, 1, 1});
  }

  /// Q, Qpe, K, V: heads [H, a, w] side by side, [a, H w]: the space read from.
  void reading(const char* map, const at::Tensor& x) {
    MapSpectra s;
    s.map = map;
    s.heads = of_heads(x);
    const at::Tensor all = scaled(x, s.heads);
    const at::Tensor stack = all.permute({1, 0, 2}).reshape({x.size(1), -1});
    s.stack = of_matrix(stack);
    s.shape = {x.size(1), x.size(2)};
    s.stack_shape = stack.sizes().vec();
    s.chain = s.shape;
    s.stack_chain = s.stack_shape;
    add(std::move(s));
  }

  /// O: heads [H, d_v, e] on top of one another, [H d_v, e]: the space written to.
  void writing() {
    MapSpectra s;
    s.map = "O";
    s.heads = of_heads(layer_.o);
    const at::Tensor stack = scaled(layer_.o, s.heads).flatten(0, 1);
    s.stack = of_matrix(stack);
    s.shape = {layer_.o.size(1), layer_.o.size(2)};
    s.stack_shape = stack.sizes().vec();
    s.chain = s.shape;
    s.stack_chain = s.stack_shape;
    add(std::move(s));
  }

  void shared(const char* map, const at::Tensor& x) {
    if (!x.defined()) return;
    MapSpectra s;
    s.map = map;
    s.stack = of_matrix(x);
    s.stack_shape = x.sizes().vec();
    s.stack_chain = s.stack_shape;
    add(std::move(s));
  }

  /// [G, k, k] -> [H, k, k]
  at::Tensor for_heads(const at::Tensor& x) const {
    return groups_ == heads_ ? x : x.repeat_interleave(heads_ / groups_, 0);
  }

  void values_to_output() {
    const Factored f = vo(layer_);
    const std::int64_t read = layer_.v.size(1), width = layer_.v.size(2),
                       written = layer_.o.size(2);
    MapSpectra s;
    s.map = "VO";
    s.heads = of_products(f);
    s.shape = {read, written};
    s.chain = {read, width, written};
    s.stack_shape = {heads_ * read, written};
    s.stack_chain = {heads_ * read, heads_ * width, written};
    const at::Tensor factors = head_factors(s.heads);
    MapSpectra t;
    t.map = "OV";
    t.stack_shape = {read, heads_ * written};
    t.stack_chain = {read, heads_ * width, heads_ * written};
    if (options_.exact) {
      const at::Tensor product = at::matmul(f.left, f.right) * factors.view({-1, 1, 1});
      s.stack = at::linalg_svdvals(product.flatten(0, 1));
      t.stack = at::linalg_svdvals(product.permute({1, 0, 2}).reshape({read, -1}));
    } else {
      const at::Tensor square = factors.square().view({-1, 1, 1});
      s.stack = stacked_rows(for_heads(gram_of_heads(layer_.v)) * square, layer_.o, s.stack_shape);
      t.stack =
          stacked_columns(f.left, gram_of_heads(layer_.o.transpose(1, 2)) * square, t.stack_shape);
    }
    add(std::move(s));
    add(std::move(t));
  }

  void queries_to_keys() {
    const Factored f = qk(layer_);
    const std::int64_t query = layer_.q.size(1), width = layer_.q.size(2), key = layer_.k.size(1);
    MapSpectra s;
    s.map = "QK";
    s.heads = of_products(f);
    s.shape = {query, key};
    s.chain = {query, width, key};
    s.stack_shape = {heads_ * query, key};
    s.stack_chain = {heads_ * query, heads_ * width, key};
    const at::Tensor factors = head_factors(s.heads);
    MapSpectra t;
    t.map = "KQ";
    t.stack_shape = {query, heads_ * key};
    t.stack_chain = {query, heads_ * width, heads_ * key};
    if (options_.exact) {
      const at::Tensor product = at::matmul(f.left, f.right) * factors.view({-1, 1, 1});
      s.stack = at::linalg_svdvals(product.flatten(0, 1));
      t.stack = at::linalg_svdvals(product.permute({1, 0, 2}).reshape({query, -1}));
    } else {
      const at::Tensor square = factors.square().view({-1, 1, 1});
      s.stack = stacked_rows(gram_of_heads(layer_.q) * square, f.right, s.stack_shape);
      t.stack = stacked_columns(f.left, for_heads(gram_of_heads(layer_.k)) * square, t.stack_shape);
    }
    add(std::move(s));
    add(std::move(t));
  }

  /// Heads L_i R_i on top of one another, from L_i^T L_i [H, k, k] and R_i [H, k, n].
  at::Tensor stacked_rows(const at::Tensor& left_gram, const at::Tensor& right,
                          const std::vector<std::int64_t>& shape) const {
    const at::Tensor values = singular_values_of_gram(weighted_gram(right, left_gram));
    return values.narrow(0, 0, std::min(shape[0], shape[1]));
  }

  /// Heads L_i R_i side by side, from L_i [H, m, k] and R_i R_i^T [H, k, k].
  at::Tensor stacked_columns(const at::Tensor& left, const at::Tensor& right_gram,
                             const std::vector<std::int64_t>& shape) const {
    const at::Tensor values =
        singular_values_of_gram(weighted_gram(left.transpose(1, 2), right_gram));
    return values.narrow(0, 0, std::min(shape[0], shape[1]));
  }

  void at_offset(std::int64_t delta) {
    const Factored f = qk_at(layer_, delta);
    MapSpectra s;
    s.map = fmt::format("QK@{}", delta);
    s.heads = of_products(f);
    s.shape = {f.left.size(1), f.right.size(2)};
    s.chain = {f.left.size(1), f.left.size(2), f.right.size(2)};
    add(std::move(s));
  }

  const AttentionLayer& layer_;
  const SpectraOptions& options_;
  std::int64_t heads_, groups_;
  std::vector<MapSpectra> out_;
};

}  // namespace

std::vector<MapSpectra> layer_spectra(const AttentionLayer& layer, const SpectraOptions& options) {
  std::vector<MapSpectra> spectra = options.fold_norms
                                        ? LayerSpectra(fold_norms(layer), options).all()
                                        : LayerSpectra(layer, options).all();
  for (const MapSpectra& s : spectra) {
    for (const at::Tensor& values : {s.heads, s.stack}) {
      if (values.defined() && !at::isfinite(values).all().item<bool>()) {
        fail(ErrorCode::NotFinite, "layer {}: the singular values of {} are not finite",
             layer.index, s.map);
      }
    }
  }
  return spectra;
}

}  // namespace subspace
