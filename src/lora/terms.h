#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "attention/layer.h"
#include "lora/layer_change.h"
#include "lora/low_rank.h"

namespace subspace {

/// Which of a circuit's changes are on: bit j is Circuit::switches[j]. 0: the base.
using SwitchSet = std::uint32_t;

/// One summand of a side, X_p = span coords.
struct Piece {
  SwitchSet set = 0;  ///< the changes that take part in it
  at::Tensor span;    ///< [1 | groups | H, d, p]; what heads share stands there once
  at::Tensor coords;  ///< [1 | groups | H, p, k]; undefined: X_p is the span itself, p = k
};

/// One side of a circuit, X' = sum_p X_p with X_p [count, d, k]; the base comes first.
struct Side {
  std::vector<Piece> pieces;
  std::int64_t count = 0;  ///< matrices: H, G, or 1 (the rotary key that MLA's heads share)
  std::int64_t rows = 0;   ///< d
  std::int64_t width = 0;  ///< k
};

/// One circuit of every head of a layer, base and adapted, in factors:
///
///   M_i' = sum_a sum_b X_a^i R(delta) Y_b^iT,   M_i = X_0^i R(delta) Y_0^iT,   d x d, never formed
///
///   QK       X = W_Q, Y = W_K                 what attends to what; a whole or partly rotary head
///            MLA: X = QA Q_i, Y = KVA K_i     the NoPE part
///   QK_rope  X = QA Qpe_i, Y = Kpe            MLA's rotary part
///   VO       X = W_V, Y = W_O^T               what is read and what is then written
///            MLA: X = KVA V_i; with an output latent Y = OB^T O_i^T
///
/// Norms on latents and on heads are always part of the chain (the latter are diagonal factors on
/// the right), the input norm if asked for. Head i reads matrix i / (heads / count) of a side.
struct Circuit {
  enum class Kind { qk, qk_rope, vo };
  Kind kind = Kind::qk;
  std::int64_t layer = 0;
  std::int64_t heads = 0;
  std::vector<std::string> switches;  ///< "q", "k", ... in the order that names terms
  Side left, right;
  Rotary rotary;  ///< between the sides; layout none: nothing is

  const char* name() const;
};

/// A term: the part of M' that needs every change of `set` and no other,
///   T_S = sum over the pairs (a, b) with set_a | set_b = S of X_a R Y_b^T,
/// which is the Moebius inversion of M'(set on) over the subsets of S. Their sum is M'.
struct Term {
  std::string name;  ///< "base", "q", "qk", "q_a+kv_b", "q.mag+k.dir"
  SwitchSet set = 0;
  std::vector<std::pair<std::size_t, std::size_t>> pairs;  ///< indices into left and right pieces
};

struct CircuitOptions {
  /// The input norm's weight (LayerNorm: and its centring) as part of what reads its output, that
  /// of a norm behind the heads as part of what they write; trained replacements are then changes
  /// of their own, "norm" and "output_norm".
  bool fold_norm = false;
  /// Coordinates [x, 1]: biases of Q, K, V as a last row, a zero row on A. Not for latents.
  bool homogeneous = false;
};

/// The circuits of a layer under a change: QK (absent where heads have no such part), QK_rope (MLA
/// with a rotary key), VO. An absent change leaves its terms out altogether.
///
/// Names of the changes: q, k, v, o; through latents q_a, q_b, kv_a, kv_b and, with an output
/// latent, o_a, o_b; norm, output_norm, q_a_norm, kv_a_norm, q_norm, k_norm for norms saved whole.
/// A matrix saved whole adds ".full"; DoRA's W' = W + W (G - I) + A B G has ".mag" and ".dir".
///
/// Throws InvalidShape (layer, matrix, found, expected) for a change that does not fit the layer,
/// NotFinite for one with NaN or Inf, Unsupported for a kind of norm that changes. Costs copies of
/// what norms and gains touch; everything else is a view.
std::vector<Circuit> circuits(const AttentionLayer& layer, const LayerChange& change,
                              const CircuitOptions& options = {});

/// Terms in the order base, one change, two, ...; ties in the order of the switches.
std::vector<Term> terms_of(const Circuit& circuit);
std::string term_name(const Circuit& circuit, SwitchSet set);

/// The circuit with R(delta) multiplied into the left side, so that nothing is between the sides;
/// not rotary: the circuit as it is.
Circuit at_offset(const Circuit& circuit, double delta);

/// The circuit of `count` heads from `begin` on; what heads share stays shared.
Circuit of_heads(const Circuit& circuit, std::int64_t begin, std::int64_t count);

/// X_a, [count, d, k], formed; the base's is the stored matrix where there are no latents.
at::Tensor formed(const Piece& piece);
/// X' (`base_only`: X_0), formed, [count, d, k].
at::Tensor formed(const Side& side, bool base_only = false);

/// A term of every head with as few columns as its factors allow (q: r_q, k: r_k, qk: the smaller),
/// [H, d, p] each side; the rotation must be in the circuit (at_offset).
LowRank term_factors(const Circuit& circuit, const Term& term);
/// The whole of M' or M: k columns.
LowRank circuit_factors(const Circuit& circuit, bool adapted);
/// dM = M' - M in r_left + r_right columns, without subtracting:
///   [A_q | W_Q B_k^T] [W_K' B_q^T | A_k]^T
LowRank delta_factors(const Circuit& circuit);

}  // namespace subspace
