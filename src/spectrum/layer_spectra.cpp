#include "spectrum/layer_spectra.h"

#include <ATen/ATen.h>

#include <limits>

#include "attention/fused.h"
#include "base/error.h"
#include "spectrum/eigenvalues.h"
#include "spectrum/gram.h"
#include "spectrum/prepare_layer.h"

namespace subspace {
namespace {

using Dims = std::vector<std::int64_t>;

class LayerSpectra {
 public:
  /// `fused` is what the fused maps are made of, `layer` what the plain ones are.
  LayerSpectra(const AttentionLayer& layer, const AttentionLayer& fused, NonFinite bad,
               const SpectraOptions& options)
      : layer_(layer),
        fused_(fused),
        options_(options),
        bad_(std::move(bad)),
        heads_(layer.heads()),
        out_groups_(layer.ob.defined() ? layer.ob.size(0) : 1) {}

  std::vector<MapSpectra> all() {
    reading("Q", layer_.q, bad_.q);
    if (layer_.q_rope.defined()) reading("Qpe", layer_.q_rope, bad_.q_rope);
    reading("K", layer_.k, bad_.k);
    reading("V", layer_.v, bad_.v);
    writing();
    shared("QA", layer_.qa);
    shared("KVA", layer_.kva);
    shared("Kpe", layer_.kpe);
    if (layer_.ob.defined()) shared("OB", layer_.ob.flatten(0, 1));
    values_to_output();
    queries_to_keys();
    if (layer_.rotary.layout != Rotary::Layout::none && !options_.offsets.empty()) at_offsets();
    solve_pending();
    return std::move(out_);
  }

 private:
  /// A fused map L_i R_i of every head: L [H, m, k] or one a group, R [H, k, n] likewise.
  struct Fused {
    at::Tensor left, right;            // as stored, heads or groups first
    at::Tensor left_gram, right_gram;  // L_i^T L_i and R_i R_i^T, [H, k, k]
  };

  /// What is known of a stack: its values, or the Gram matrix that they are to come from.
  struct Stack {
    at::Tensor values, gram;
  };

  /// A map of `out_` whose stack's values, the first `keep` of them, come from the next `blocks` of
  /// `pending_grams_`.
  struct Pending {
    std::size_t map, blocks;
    std::int64_t keep;
  };

  /// The stack of the map that is added next, from its diagonal blocks (one, unless groups of heads
  /// write to spaces of their own). One Gram matrix at a time on the CPU, where each has all
  /// threads and memory counts; a GPU is kept busy only by several at once.
  void set_stack(MapSpectra& spectra, std::vector<Stack> blocks) {
    const auto keep = std::min(spectra.stack_shape[0], spectra.stack_shape[1]);
    if (blocks[0].gram.defined() && !blocks[0].gram.is_cpu()) {
      for (Stack& block : blocks) pending_grams_.push_back(std::move(block.gram));
      pending_.push_back({out_.size(), blocks.size(), keep});
      return;
    }
    std::vector<at::Tensor> values;
    for (Stack& block : blocks) {
      if (block.gram.defined()) block.values = singular_values_of_gram(std::move(block.gram));
      values.push_back(block.values.to(at::kCPU));
    }
    spectra.stack = together(values, keep);
  }

  void solve_pending() {
    const std::vector<at::Tensor> values = singular_values_of_grams(std::move(pending_grams_));
    auto next = values.begin();
    for (const Pending& pending : pending_) {
      const auto end = next + static_cast<std::ptrdiff_t>(pending.blocks);
      out_[pending.map].stack = together({next, end}, pending.keep);
      next = end;
    }
  }

  /// Singular values of a block-diagonal matrix: those of its blocks. A Gram matrix is over one
  /// axis, whichever is longer, and may give more values than the matrix has.
  static at::Tensor together(const std::vector<at::Tensor>& blocks, std::int64_t keep) {
    at::Tensor all = blocks[0];
    if (blocks.size() > 1) all = std::get<0>(at::cat(blocks).sort(-1, /*descending=*/true));
    return all.narrow(0, 0, std::min(keep, all.size(0))).contiguous();
  }

  void add(MapSpectra spectra, const std::vector<bool>& bad) {
    if (spectra.heads.defined()) {
      spectra.heads = spectra.heads.to(at::kCPU).contiguous();
      for (std::size_t i = 0; i < bad.size(); ++i) {
        if (!bad[i]) continue;
        spectra.heads[static_cast<std::int64_t>(i)].fill_(std::numeric_limits<double>::quiet_NaN());
      }
    }
    out_.push_back(std::move(spectra));
  }

  /// Flags of heads from those of heads or groups.
  bool flag(const std::vector<bool>& flags, std::int64_t head) const {
    const auto count = static_cast<std::int64_t>(flags.size());
    return count > 0 && flags[static_cast<std::size_t>(head / (heads_ / count))];
  }

  std::vector<bool> either(const std::vector<bool>& a, const std::vector<bool>& b) const {
    std::vector<bool> out;
    for (std::int64_t i = 0; i < heads_; ++i) out.push_back(flag(a, i) || flag(b, i));
    return out;
  }

  /// Singular values of each [m, n] of [H, m, n].
  at::Tensor of_heads(const at::Tensor& x) const {
    if (options_.exact) return at::linalg_svdvals(x);
    return singular_values_of_gram(gram_of_heads(x.size(1) >= x.size(2) ? x : x.transpose(1, 2)));
  }

  /// Singular values of each L_i R_i from the Gram matrices of both, [H, k, k].
  at::Tensor of_products(const Fused& f) const {
    const auto n = std::min({f.left.size(1), f.left.size(2), f.right.size(2)});
    if (options_.exact) return at::linalg_svdvals(products(f)).narrow(-1, 0, n);
    const at::Tensor factor = psd_factor(f.left_gram);
    const at::Tensor core = at::matmul(factor.transpose(1, 2), at::matmul(f.right_gram, factor));
    return singular_values_of_gram(core).narrow(-1, 0, n);
  }

  at::Tensor products(const Fused& f) const {
    return at::matmul(for_heads(f.left), for_heads(f.right));
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

  /// diag(factors of the rows) x; x [m, n], factors [m] or undefined.
  Stack stack_of(const at::Tensor& x, const at::Tensor& factors = {}) const {
    if (options_.exact) {
      return {at::linalg_svdvals(factors.defined() ? x * factors.unsqueeze(1) : x), {}};
    }
    if (x.size(0) >= x.size(1)) {
      return {{}, factors.defined() ? gram_of_columns(x, factors.square()) : gram_of_columns(x)};
    }
    at::Tensor gram = gram_of_columns(x.t());
    if (factors.defined()) gram.mul_(factors.unsqueeze(1)).mul_(factors.unsqueeze(0));
    return {{}, gram};
  }

  /// Factors of the rows of a stack of heads `width` rows high; undefined if all are one.
  at::Tensor row_factors(const at::Tensor& values, std::int64_t width) const {
    if (options_.normalize == HeadScaling::none) return {};
    return head_factors(values).repeat_interleave(width);
  }

  /// Q, Qpe, K, V: heads [H, a, w] side by side, [a, H w]: the space read from.
  void reading(const char* map, const at::Tensor& x, const std::vector<bool>& bad) {
    if (x.size(2) == 0) return;  // MLA whose heads are rotated whole
    MapSpectra s;
    s.map = map;
    s.heads = of_heads(x);
    const at::Tensor transposed = x.transpose(1, 2).reshape({-1, x.size(1)});
    s.shape = {x.size(1), x.size(2)};
    s.stack_shape = {x.size(1), x.size(0) * x.size(2)};
    set_stack(s, {stack_of(transposed, row_factors(s.heads, x.size(2)))});
    s.chain = s.shape;
    s.stack_chain = s.stack_shape;
    add(std::move(s), bad);
  }

  /// O: heads [H, d_v, e] on top of one another, [H d_v, e]: the space written to. With an output
  /// latent a group of heads, each group in columns of its own, [H d_v, G e].
  void writing() {
    MapSpectra s;
    s.map = "O";
    s.heads = of_heads(layer_.o);
    const std::int64_t per_block = heads_ / out_groups_, width = layer_.o.size(1);
    s.shape = {width, layer_.o.size(2)};
    s.stack_shape = {heads_ * width, out_groups_ * layer_.o.size(2)};
    const at::Tensor factors = row_factors(s.heads, width);
    std::vector<Stack> blocks;
    for (std::int64_t group = 0; group < out_groups_; ++group) {
      const at::Tensor rows = layer_.o.narrow(0, group * per_block, per_block).flatten(0, 1);
      blocks.push_back(stack_of(rows, factors.defined()
                                          ? factors.narrow(0, group * rows.size(0), rows.size(0))
                                          : factors));
    }
    set_stack(s, std::move(blocks));
    s.chain = s.shape;
    s.stack_chain = {per_block * width, layer_.o.size(2)};
    s.stack_blocks = out_groups_;
    add(std::move(s), bad_.o);
  }

  void shared(const char* map, const at::Tensor& x) {
    if (!x.defined()) return;
    MapSpectra s;
    s.map = map;
    s.stack_shape = x.sizes().vec();
    set_stack(s, {stack_of(x)});
    s.stack_chain = s.stack_shape;
    add(std::move(s), {});
  }

  /// [G, ..] -> [H, ..]
  at::Tensor for_heads(const at::Tensor& x) const {
    return x.size(0) == heads_ ? x : x.repeat_interleave(heads_ / x.size(0), 0);
  }

  /// Sum over the heads of each group where `like` is one a group: [H, k, k] -> [G, k, k].
  at::Tensor summed_for(const at::Tensor& like, const at::Tensor& x) const {
    if (like.size(0) == heads_) return x;
    return x.reshape({like.size(0), heads_ / like.size(0), x.size(1), x.size(2)}).sum(1);
  }

  /// One fused map: its heads and `rows` stack (heads on top of one another), and its `columns`
  /// stack (side by side). `rows_twice` repeats the published double division; with `blocks` the
  /// rows stack is block diagonal of that many groups of heads.
  void fused_map(const char* rows, const char* columns, const Fused& f, Dims before, Dims after,
                 const std::vector<bool>& bad, bool rows_twice, std::int64_t blocks = 1) {
    // Chance: the chain of factors; in a stack each factor that differs from head to head, and all
    // that is beyond it on the stacked side, is as much higher or wider as there are heads.
    const std::int64_t width = f.left.size(2);
    const std::int64_t per_block = heads_ / blocks;
    MapSpectra s, t;
    s.map = rows;
    s.heads = of_products(f);
    s.shape = {before.front(), after.back()};
    s.stack_shape = {heads_ * before.front(), blocks * after.back()};
    s.stack_blocks = blocks;
    t.map = columns;
    t.stack_shape = {before.front(), heads_ * after.back()};
    for (const std::int64_t size : before) {
      s.chain.push_back(size);
      s.stack_chain.push_back(per_block * size);
      t.stack_chain.push_back(size);
    }
    s.chain.push_back(width);
    s.stack_chain.push_back(per_block * width);
    t.stack_chain.push_back(heads_ * width);
    for (const std::int64_t size : after) {
      s.chain.push_back(size);
      s.stack_chain.push_back(size);
      t.stack_chain.push_back(heads_ * size);
    }
    const at::Tensor factors = head_factors(s.heads);
    const at::Tensor row_factors = rows_twice ? factors.square() : factors;
    if (options_.exact) {
      const at::Tensor all = products(f);
      const at::Tensor scaled = all * row_factors.view({-1, 1, 1});
      std::vector<Stack> above;
      for (std::int64_t block = 0; block < blocks; ++block) {
        const at::Tensor rows = scaled.narrow(0, block * per_block, per_block).flatten(0, 1);
        above.push_back({at::linalg_svdvals(rows), {}});
      }
      set_stack(s, std::move(above));
      add(std::move(s), bad);
      const at::Tensor beside =
          (all * factors.view({-1, 1, 1})).permute({1, 0, 2}).reshape({all.size(1), -1});
      set_stack(t, {{at::linalg_svdvals(beside), {}}});
    } else {
      const at::Tensor left = f.left_gram * row_factors.square().view({-1, 1, 1});
      const at::Tensor right = f.right_gram * factors.square().view({-1, 1, 1});
      const at::Tensor summed = summed_for(f.right, left);
      std::vector<Stack> above;
      for (std::int64_t block = 0; block < blocks; ++block) {
        // Without output latents the right-hand factors may be one a group of keys.
        const bool whole = blocks == 1;
        above.push_back(
            {{},
             weighted_gram(whole ? f.right : f.right.narrow(0, block * per_block, per_block),
                           whole ? summed : summed.narrow(0, block * per_block, per_block))});
      }
      set_stack(s, std::move(above));
      add(std::move(s), bad);
      set_stack(t, {{{}, weighted_gram(f.left.transpose(1, 2), summed_for(f.left, right))}});
    }
    add(std::move(t), {});
  }

  bool through_latents() const { return options_.space == Space::model; }

  void values_to_output() {
    Dims before = {layer_.v.size(1)}, after = {layer_.o.size(2)};
    if (through_latents() && layer_.kva.defined())
      before.insert(before.begin(), layer_.kva.size(0));
    if (through_latents() && layer_.ob.defined()) after.push_back(layer_.ob.size(2));
    const Fused f = {fused_.v, fused_.o, for_heads(gram_of_heads(fused_.v)),
                     gram_of_heads(fused_.o.transpose(1, 2))};
    fused_map("VO", "OV", f, before, after, either(bad_.v, bad_.o), false,
              through_latents() ? 1 : out_groups_);
  }

  void queries_to_keys() {
    if (layer_.q.size(2) == 0) return;
    Dims before = {layer_.q.size(1)}, after = {layer_.k.size(1)};
    if (through_latents() && layer_.qa.defined()) before.insert(before.begin(), layer_.qa.size(0));
    if (through_latents() && layer_.kva.defined()) after.push_back(layer_.kva.size(0));
    const Fused f = {fused_.q, fused_.k.transpose(1, 2), gram_of_heads(fused_.q),
                     for_heads(gram_of_heads(fused_.k))};
    fused_map("QK", "KQ", f, before, after, either(bad_.q, bad_.k), options_.published_faults);
  }

  /// The rotation acts between two small factors, which are the same at every offset.
  void at_offsets() {
    const bool latent = layer_.q_rope.defined();
    const at::Tensor& queries = latent ? fused_.q_rope : fused_.q;
    const at::Tensor keys = latent ? fused_.kpe.unsqueeze(0) : fused_.k;
    MapSpectra s;
    const std::int64_t width = queries.size(2);
    const std::int64_t rows = latent ? layer_.q_rope.size(1) : layer_.q.size(1);
    s.chain = {rows, width, keys.size(1)};
    if (through_latents() && layer_.qa.defined()) {
      s.chain.insert(s.chain.begin(), layer_.qa.size(0));
    }
    s.shape = {s.chain.front(), s.chain.back()};
    const auto n = std::min({rows, width, keys.size(1)});
    const auto bad = latent ? either(bad_.q_rope, {}) : either(bad_.q, bad_.k);
    at::Tensor left, right;
    if (!options_.exact) {
      left = psd_factor(gram_of_heads(queries)).transpose(1, 2);
      right = for_heads(psd_factor(gram_of_heads(keys)));
    }
    for (const std::int64_t delta : options_.offsets) {
      s.map = fmt::format("QK@{}", delta);
      if (options_.exact) {
        const Factored f = qk_at(fused_, delta);
        s.heads = at::linalg_svdvals(at::matmul(f.left, f.right)).narrow(-1, 0, n);
      } else {
        const at::Tensor turned = rotate(left, layer_.rotary, static_cast<double>(delta));
        s.heads = singular_values_of_gram(gram_of_heads(at::matmul(turned, right)));
        s.heads = s.heads.narrow(-1, 0, n);
      }
      add(s, bad);
    }
  }

  const AttentionLayer& layer_;
  const AttentionLayer& fused_;
  const SpectraOptions& options_;
  NonFinite bad_;
  std::int64_t heads_;
  std::int64_t out_groups_;  ///< groups of heads with an output latent of their own
  std::vector<MapSpectra> out_;
  std::vector<Pending> pending_;
  std::vector<at::Tensor> pending_grams_;
};

void check_result(const MapSpectra& s, std::int64_t layer, bool marked) {
  const bool heads = !s.heads.defined() || marked || at::isfinite(s.heads).all().item<bool>();
  const bool stack = !s.stack.defined() || at::isfinite(s.stack).all().item<bool>();
  if (heads && stack) return;
  fail(ErrorCode::NotFinite,
       "layer {}: the singular values of {} are not finite, though its weights are: they are too "
       "large to be squared in float64",
       layer, s.map);
}

}  // namespace

SpectraOptions published_2025() {
  SpectraOptions options;
  options.normalize = HeadScaling::spectral;
  options.fold_norms = true;
  options.published_faults = true;
  return options;
}

LayerMaps layer_spectra(const AttentionLayer& given, const SpectraOptions& options) {
  AttentionLayer checked = given;
  NonFinite bad = take_out_nonfinite(checked, options.mark_nonfinite);
  const bool marked = bad.any();
  LayerMaps result;
  result.notes = describe(bad);
  const AttentionLayer layer = apply_conventions(checked, options);
  const AttentionLayer fused = options.space == Space::model ? in_model_space(layer) : layer;
  result.maps = LayerSpectra(layer, fused, std::move(bad), options).all();
  for (const MapSpectra& s : result.maps) check_result(s, given.index, marked);
  return result;
}

}  // namespace subspace
