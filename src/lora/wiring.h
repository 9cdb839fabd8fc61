#pragma once

#include <set>
#include <string>

#include "lora/layer_change.h"

namespace subspace {

/// One attention layer as composition of heads sees it: what its heads read from the residual
/// stream and write to it, in model space, norms folded, and beside each matrix what an adapter
/// adds, as factors.
///
///   Q_i' = Q_i + A_q B_q^i,  K_g' = K_g + A_k B_k^g,  V_g' = V_g + A_v B_v^g,  O_i' = O_i + A_o^i
///   B_o
///
/// For MLA a head's matrices are products through the latents, and what an adapter adds to any of
/// them has the same form, with the ranks of the matrices' own adapters added up:
///
///   Q_i = [QA Qn_i | QA Qpe_i],  K_i = [KVA Kn_i | Kpe],  V_i = KVA V_i
///   QA' Q_i' - QA Q_i = A_qa (B_qa Q_i') + (QA A_q) B_q^i  =  [A_qa | QA A_q] [B_qa Q_i' ; B_q^i]
struct Wiring {
  struct Reads {
    at::Tensor w;  ///< [H or G, d, k]
    at::Tensor a;  ///< [d, r], shared by the heads; r = 0 without an adapter
    at::Tensor b;  ///< [H or G, r, k]
    std::int64_t rank() const { return a.size(1); }
  };
  struct Writes {
    at::Tensor w;  ///< [H, d_v, d]
    at::Tensor a;  ///< [H, d_v, r]
    at::Tensor b;  ///< [r, d], shared by the heads
    std::int64_t rank() const { return b.size(0); }
  };
  std::int64_t index = 0;
  Reads q, k, v;
  Writes o;
  Rotary rotary;                 ///< of the k axis of q and k
  std::set<std::string> approx;  ///< what is left out: "qk_norm", "mla_rms", "post_norm"

  std::int64_t heads() const { return q.w.size(0); }
  std::int64_t width() const { return q.w.size(1); }
  std::int64_t group_of(std::int64_t head, const Reads& reads) const {
    return head / (heads() / reads.w.size(0));
  }
};

/// What heads write, x [.., d], through the norm behind them, but for its scale: x diag(gamma),
/// LayerNorm: x (I - 11^T/d) diag(gamma); without a norm x itself.
at::Tensor written(const at::Tensor& x, const Norm& norm);

/// Folds norms into the layer and into A (RMSNorm: diag(gamma); LayerNorm: centring too), norms on
/// queries and keys into the columns, and one behind the heads into O and B_o. Attention's biases
/// have no part in composition.
///
/// Throws Unsupported, naming layer and matrix, where the change is not of the form above: DoRA's
/// magnitudes, matrices or norms saved whole, a shared output latent (o then writes to a latent,
/// and through it to the residual stream), values that are keys (DeepSeek-V4).
Wiring wiring_of(const AttentionLayer& layer, const LayerChange& change);

}  // namespace subspace
