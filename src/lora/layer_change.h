#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "attention/layer.h"

namespace subspace {

/// What an adapter does to one matrix W of an AttentionLayer, row vectors (y = x W), per head:
///
///   W_i' = (W_i + A_i B_i) diag(gain_i) + full_i
///
/// The scale (alpha / r, rsLoRA's alpha / sqrt(r), patterns) is inside B. One of A and B is shared
/// by the heads and has 1 in front: B of what heads write with, A of what they read with.
struct MatrixChange {
  at::Tensor a;     ///< [1 or H, in, r]; undefined: no low-rank part
  at::Tensor b;     ///< [H or 1, r, out]
  at::Tensor gain;  ///< [H or 1, out] DoRA's magnitude over the norm of its column; undefined: 1
  at::Tensor full;  ///< like W: a matrix saved whole (modules_to_save), less the base's

  bool defined() const { return a.defined() || gain.defined() || full.defined(); }
  std::int64_t rank() const { return a.defined() ? a.size(2) : 0; }
};

/// What an adapter does to one attention layer: a change for each matrix of AttentionLayer, under
/// the same names and in the same layout; float64 on the CPU. Undefined: that matrix is left alone.
///
/// Matrices cut from one stored tensor share what it shares: with a fused q, k, v the three have
/// one A (the same tensor); in MLA the NoPE and RoPE parts of Q, and K and V, likewise.
struct LayerChange {
  std::int64_t index = 0;
  MatrixChange q, q_rope, k, v, o;  ///< a [1, a|b, r], b [H|G, r, d]; o: a [H, d_v, r], b [1, r, e]
  MatrixChange qa, kva, kpe;        ///< a [1, d, r], b [1, r, width]
  MatrixChange ob;                  ///< [groups, e, d]

  // What is added to the biases of the same names, and norms saved whole, which replace the base's.
  at::Tensor q_bias, k_bias, v_bias, o_bias, qa_bias, kva_bias, kpe_bias;
  std::optional<Norm> input, output, q_latent, kv_latent, q_head, k_head;
};

}  // namespace subspace
