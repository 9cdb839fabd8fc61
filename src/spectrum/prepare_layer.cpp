#include "spectrum/prepare_layer.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "attention/fused.h"
#include "base/error.h"
#include "spectrum/eigenvalues.h"
#include "spectrum/gram.h"

namespace subspace {
namespace {

bool all_finite(const at::Tensor& x) {
  // A sum is one pass without a temporary; it may overflow, so only its verdict "finite" counts.
  return at::isfinite(x.sum()).item<bool>() || at::isfinite(x).all().item<bool>();
}

bool some(const std::vector<bool>& flags) {
  return std::find(flags.begin(), flags.end(), true) != flags.end();
}

/// R with R^T R = A^T A, so that sigma(A X) = sigma(R X).
at::Tensor right_factor(const at::Tensor& a) { return psd_factor(gram_of_columns(a)).t(); }

}  // namespace

bool NonFinite::any() const { return some(q) || some(q_rope) || some(k) || some(v) || some(o); }

NonFinite take_out_nonfinite(AttentionLayer& layer, bool mark) {
  struct Shared {
    const char* name;
    const at::Tensor* tensor;
  };
  for (const auto& [name, tensor] :
       {Shared{"QA", &layer.qa}, Shared{"KVA", &layer.kva}, Shared{"Kpe", &layer.kpe},
        Shared{"OB", &layer.ob}, Shared{"the input norm", &layer.input.weight},
        Shared{"the query latent's norm", &layer.q_latent.weight},
        Shared{"the key/value latent's norm", &layer.kv_latent.weight},
        Shared{"the query heads' norm", &layer.q_head.weight},
        Shared{"the key heads' norm", &layer.k_head.weight}}) {
    if (tensor->defined() && !all_finite(*tensor)) {
      fail(ErrorCode::NotFinite,
           "layer {}: {} holds NaN or Inf; all heads share it, so there is nothing to leave out. "
           "Leave the layer out with --layers",
           layer.index, name);
    }
  }
  auto take_out = [&](const char* name, at::Tensor& x) {
    std::vector<bool> flags;
    if (!x.defined()) return flags;
    flags.assign(static_cast<std::size_t>(x.size(0)), false);
    if (all_finite(x)) return flags;
    x = x.clone();
    for (std::int64_t head = 0; head < x.size(0); ++head) {
      if (all_finite(x[head])) continue;
      if (!mark) {
        fail(ErrorCode::NotFinite,
             "layer {}: head {} of {} holds NaN or Inf; --mark-nonfinite leaves such heads out",
             layer.index, head, name);
      }
      flags[static_cast<std::size_t>(head)] = true;
      x[head].zero_();
    }
    return flags;
  };
  return {.q = take_out("Q", layer.q),
          .q_rope = take_out("Qpe", layer.q_rope),
          .k = take_out("K", layer.k),
          .v = take_out("V", layer.v),
          .o = take_out("O", layer.o)};
}

std::vector<std::string> describe(const NonFinite& found) {
  std::vector<std::string> notes;
  auto note = [&](const char* name, const std::vector<bool>& flags) {
    std::string heads;
    for (std::size_t i = 0; i < flags.size(); ++i) {
      if (flags[i]) heads += (heads.empty() ? "" : ", ") + std::to_string(i);
    }
    if (heads.empty()) return;
    notes.push_back(
        fmt::format("{} of head {} holds NaN or Inf: marked, left out of stacks", name, heads));
  };
  note("Q", found.q);
  note("Qpe", found.q_rope);
  note("K", found.k);
  note("V", found.v);
  note("O", found.o);
  return notes;
}

AttentionLayer apply_conventions(const AttentionLayer& layer, const SpectraOptions& options) {
  AttentionLayer out = options.fold_norms ? fold_norms(layer) : layer;
  if (!options.published_faults || !layer.is_mla()) return out;
  out.kva = layer.kva;
  out.kpe = layer.kpe;
  // kv_b_proj's rows as stored, head by head K then V, then cut once for all heads.
  const std::int64_t heads = out.k.size(0), latent = out.k.size(1), keys = out.k.size(2),
                     values = out.v.size(2);
  const at::Tensor rows = at::cat({out.k, out.v}, 2).transpose(1, 2).reshape({-1, latent});
  out.k = rows.narrow(0, 0, heads * keys).view({heads, keys, latent}).transpose(1, 2);
  out.v =
      rows.narrow(0, heads * keys, heads * values).view({heads, values, latent}).transpose(1, 2);
  return out;
}

AttentionLayer in_model_space(const AttentionLayer& layer) {
  AttentionLayer out = layer;
  if (layer.qa.defined()) {
    const at::Tensor factor = right_factor(layer.qa);
    out.q = at::matmul(factor, layer.q);
    if (layer.q_rope.defined()) out.q_rope = at::matmul(factor, layer.q_rope);
  }
  if (layer.kva.defined()) {
    const at::Tensor factor = right_factor(layer.kva);
    out.k = at::matmul(factor, layer.k);
    out.v = at::matmul(factor, layer.v);
  }
  if (layer.ob.defined()) {
    const std::int64_t groups = layer.ob.size(0), per = layer.o.size(0) / groups;
    const at::Tensor stacked = layer.o.reshape({groups, per * layer.o.size(1), layer.o.size(2)});
    out.o = at::bmm(stacked, layer.ob).view({layer.o.size(0), layer.o.size(1), -1});
  }
  return out;
}

}  // namespace subspace
