#pragma once

#include "attention/layer.h"

namespace subspace {

/// A product kept as its factors: left [.., m, k], right [.., k, n], never multiplied by accident.
struct Factored {
  at::Tensor left;
  at::Tensor right;
};

/// Folds norms (and latent scales) into everything that reads their output, returning a layer whose
/// norms are gone: input norm into QA, KVA, Kpe (or Q, K, V), q_latent into Q and Qpe, kv_latent
/// into K and V, q_head/k_head on the right of Q and K (and of V where it is the key). O(size of
/// the matrices).
AttentionLayer fold_norms(const AttentionLayer& layer);

/// VO_i = V_g(i) O_i: left [H, b, d_v] (groups expanded as views), right [H, d_v, e]. Where values
/// share the key (DeepSeek-V4) they are rotated with it and attention's output is turned back, so
/// that what moves over an offset is V R(offset)^T O_i, and this is offset 0.
Factored vo(const AttentionLayer& layer);
/// QK_i = Q_i K_g(i)^T at offset 0 (NoPE part for MLA): left [H, a, d_h], right [H, d_h, b].
Factored qk(const AttentionLayer& layer);
/// The rotary part at an offset: MLA Qpe_i R(delta) Kpe^T (right [H, d_rope, d] expanded), fully or
/// partially rotary heads Q_i R(delta) K_g^T.
Factored qk_at(const AttentionLayer& layer, std::int64_t delta);
/// x R(delta) along the last axis, as Rotary says.
at::Tensor rotate(const at::Tensor& x, const Rotary& rotary, double delta);

}  // namespace subspace
