#include "lora/wiring.h"

#include <ATen/ATen.h>

#include <vector>

#include "attention/fused.h"
#include "base/error.h"

namespace subspace {
namespace {

struct NamedChange {
  const char* name;
  const MatrixChange& change;
};

void require_low_rank(const AttentionLayer& layer, const LayerChange& change) {
  const NamedChange all[] = {{"q", change.q},     {"q_rope", change.q_rope}, {"k", change.k},
                             {"v", change.v},     {"o", change.o},           {"qa", change.qa},
                             {"kva", change.kva}, {"kpe", change.kpe}};
  for (const auto& [name, matrix] : all) {
    if (matrix.gain.defined() || matrix.full.defined()) {
      fail(ErrorCode::Unsupported,
           "layer {}: {} of '{}' is a change of full rank; composition reads low-rank changes "
           "alone. `lora heads` has its terms",
           layer.index, matrix.gain.defined() ? "DoRA's magnitude" : "the matrix saved whole",
           name);
    }
  }
  if (change.input || change.output || change.q_latent || change.kv_latent || change.q_head ||
      change.k_head) {
    fail(ErrorCode::Unsupported,
         "layer {}: the adapter saved a norm whole (modules_to_save), which changes all that reads "
         "it at full rank; composition reads low-rank changes alone",
         layer.index);
  }
  if (layer.ob.defined() || layer.values_share_key) {
    fail(ErrorCode::Unsupported,
         "layer {}: {}; composition is defined here for heads that write to the residual stream "
         "with values of their own",
         layer.index,
         layer.values_share_key ? "its values are its keys, turned back by the query's position"
                                : "its heads write to a shared output latent");
  }
}

/// The A of every matrix with the norm that stands before it folded in: an A reads what its W
/// reads, so it is folded as if it were one.
LayerChange fold_inputs(const AttentionLayer& layer, const LayerChange& change) {
  AttentionLayer probe;
  probe.input = layer.input;
  probe.q_latent = layer.q_latent;
  probe.kv_latent = layer.kv_latent;
  probe.q_latent_scale = layer.q_latent_scale;
  probe.kv_latent_scale = layer.kv_latent_scale;
  probe.q = change.q.a;
  probe.q_rope = change.q_rope.a;
  probe.k = change.k.a;
  probe.v = change.v.a;
  // Which norm an A stands behind depends on whether the layer has latents.
  if (layer.qa.defined()) probe.qa = change.qa.a.defined() ? change.qa.a : layer.qa;
  if (layer.is_mla()) {
    probe.kva = change.kva.a.defined() ? change.kva.a : layer.kva;
    probe.kpe = change.kpe.a;
  }
  probe = fold_norms(probe);
  LayerChange out = change;
  auto take = [](MatrixChange& matrix, const at::Tensor& folded) {
    if (matrix.a.defined()) matrix.a = folded;
  };
  take(out.q, probe.q);
  take(out.q_rope, probe.q_rope);
  take(out.k, probe.k);
  take(out.v, probe.v);
  take(out.qa, probe.qa);
  take(out.kva, probe.kva);
  take(out.kpe, probe.kpe);
  auto columns = [](MatrixChange& matrix, const Norm& norm) {
    if (!matrix.b.defined() || norm.kind == Norm::Kind::none || !norm.weight.defined()) return;
    matrix.b = matrix.b * norm.weight;
  };
  columns(out.q, layer.q_head);
  columns(out.k, layer.k_head);
  return out;
}

/// [1, in, r] -> [in, r]
at::Tensor shared(const at::Tensor& a) { return a.dim() == 3 ? a[0] : a; }

/// Collects what is added to one Reads: terms a b whose b fills some of the columns. Terms with the
/// same A (the same tensor in the adapter) share its columns.
class Terms {
 public:
  Terms(std::int64_t heads, std::int64_t width, std::int64_t k)
      : heads_(heads), width_(width), k_(k) {}

  /// `key`: the adapter's own tensor; a [width, r]; b [heads or 1, r, n] for columns begin ..
  void add(const at::Tensor& key, const at::Tensor& a, const at::Tensor& b, std::int64_t begin) {
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      if (keys_[i].is_same(key) && a_[i].sizes() == a.sizes()) {
        place(b_[i], b, begin);
        return;
      }
    }
    keys_.push_back(key);
    a_.push_back(a);
    b_.push_back(at::zeros({heads_, a.size(1), k_}, a.options()));
    place(b_.back(), b, begin);
  }

  void finish(Wiring::Reads& out, const at::TensorOptions& options) const {
    out.a = a_.empty() ? at::zeros({width_, 0}, options) : at::cat(a_, 1);
    out.b = b_.empty() ? at::zeros({heads_, 0, k_}, options) : at::cat(b_, 1);
  }

 private:
  static void place(const at::Tensor& into, const at::Tensor& b, std::int64_t begin) {
    into.narrow(2, begin, b.size(2)).add_(b);
  }
  std::int64_t heads_, width_, k_;
  std::vector<at::Tensor> keys_, a_, b_;
};

/// What reads the residual stream directly: W + A B as they are.
Wiring::Reads plain_reads(const at::Tensor& w, const MatrixChange& change, const at::Tensor& key) {
  Wiring::Reads out;
  out.w = w;
  Terms terms(w.size(0), w.size(1), w.size(2));
  if (change.a.defined()) terms.add(key, shared(change.a), change.b, 0);
  terms.finish(out, w.options());
  return out;
}

/// A part of the columns of an MLA head: x -> latent -> W, or (latent undefined) x -> W.
struct Part {
  at::Tensor latent;  // [d, r]
  const MatrixChange* latent_change = nullptr;
  at::Tensor latent_key;
  at::Tensor w;  // [H or 1, r, n] through the latent, else [H or 1, d, n]
  const MatrixChange* change = nullptr;
  at::Tensor key;
};

Wiring::Reads joined_reads(const std::vector<Part>& parts, std::int64_t heads) {
  std::vector<at::Tensor> columns;
  std::int64_t k = 0;
  for (const Part& part : parts) {
    const at::Tensor w = part.latent.defined() ? at::matmul(part.latent, part.w) : part.w;
    columns.push_back(w.expand({heads, -1, -1}));
    k += w.size(2);
  }
  Wiring::Reads out;
  out.w = at::cat(columns, 2);
  Terms terms(heads, out.w.size(1), k);
  std::int64_t begin = 0;
  for (const Part& part : parts) {
    const MatrixChange& own = *part.change;
    if (part.latent.defined() && part.latent_change->a.defined()) {
      at::Tensor adapted = part.w;
      if (own.a.defined()) adapted = adapted + at::matmul(own.a, own.b);
      terms.add(part.latent_key, shared(part.latent_change->a),
                at::matmul(part.latent_change->b, adapted), begin);
    }
    if (own.a.defined()) {
      const at::Tensor a =
          part.latent.defined() ? at::matmul(part.latent, shared(own.a)) : shared(own.a);
      terms.add(part.key, a, own.b, begin);
    }
    begin += part.w.size(2);
  }
  terms.finish(out, out.w.options());
  return out;
}

void mla_reads(const AttentionLayer& layer, const LayerChange& folded, const LayerChange& given,
               Wiring& out) {
  const std::int64_t heads = layer.heads();
  const Part query{layer.qa, &folded.qa, given.qa.a, layer.q, &folded.q, given.q.a};
  std::vector<Part> queries, keys;
  if (layer.q.size(2) > 0) {
    queries.push_back(query);
    keys.push_back({layer.kva, &folded.kva, given.kva.a, layer.k, &folded.k, given.k.a});
  }
  if (layer.q_rope.defined()) {
    queries.push_back(query);
    queries.back().w = layer.q_rope;
    queries.back().change = &folded.q_rope;
    queries.back().key = given.q_rope.a;
    Part key;
    key.w = layer.kpe.unsqueeze(0);
    key.change = &folded.kpe;
    key.key = given.kpe.a;
    keys.push_back(key);
    out.rotary.begin = layer.q.size(2);
  }
  out.q = joined_reads(queries, heads);
  out.k = joined_reads(keys, heads);
  out.v = joined_reads({{layer.kva, &folded.kva, given.kva.a, layer.v, &folded.v, given.v.a}},
                       layer.v.size(0));
}

}  // namespace

at::Tensor written(const at::Tensor& x, const Norm& norm) {
  if (norm.kind == Norm::Kind::none) return x;
  const bool centred = norm.kind == Norm::Kind::layer;
  return (centred ? x - x.mean(-1, /*keepdim=*/true) : x) * norm.weight;
}

Wiring wiring_of(const AttentionLayer& layer, const LayerChange& change) {
  require_low_rank(layer, change);
  const AttentionLayer base = fold_norms(layer);
  const LayerChange folded = fold_inputs(layer, change);
  Wiring out;
  out.index = layer.index;
  out.rotary = layer.rotary;
  if (layer.q_head.kind != Norm::Kind::none || layer.k_head.kind != Norm::Kind::none) {
    out.approx.insert("qk_norm");
  }
  if (layer.is_mla() || layer.qa.defined()) {
    if (layer.q_latent.kind != Norm::Kind::none || layer.kv_latent.kind != Norm::Kind::none) {
      out.approx.insert("mla_rms");
    }
    mla_reads(base, folded, change, out);
  } else {
    out.q = plain_reads(base.q, folded.q, change.q.a);
    out.k = plain_reads(base.k, folded.k, change.k.a);
    out.v = plain_reads(base.v, folded.v, change.v.a);
  }
  if (layer.output.kind != Norm::Kind::none) out.approx.insert("post_norm");
  out.o.w = written(base.o, layer.output);
  const std::int64_t heads = base.o.size(0), d_v = base.o.size(1), width = base.o.size(2);
  if (folded.o.a.defined()) {
    out.o.a = folded.o.a.expand({heads, -1, -1});
    out.o.b = written(shared(folded.o.b), layer.output);
  } else {
    out.o.a = at::zeros({heads, d_v, 0}, base.o.options());
    out.o.b = at::zeros({0, width}, base.o.options());
  }
  return out;
}

}  // namespace subspace
