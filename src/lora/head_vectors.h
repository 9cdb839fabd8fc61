#pragma once

#include <array>

#include "lora/frames.h"

namespace subspace {

/// Leading singular vectors of every head's M, M' and dM at offset 0, in the space of the circuit:
/// left what is read (of QK: asked by), right what is written (of QK: matched).
struct HeadVectors {
  struct Pair {
    at::Tensor left, right;  ///< [H, count, d] on the CPU, unit rows, strongest first
  };
  Pair base, adapted, delta;
};

/// `count` of each, fewer where the rank bound is smaller. A pair's common sign is arbitrary: the
/// element of largest size on the left is positive. Costs a QR of each side and an SVD of its core,
/// O(H d (k + r)^2), and O(H count d) memory.
HeadVectors head_vectors(const Circuit& circuit, std::int64_t count);

/// sum Re lambda / sum |lambda| over the nonzero eigenvalues of W_E M W_U^T, tokens to tokens, of
/// base and adapted: those of W_O G W_V, k x k. `map` is G [d, d] (token_map), the circuit VO with
/// its norms folded. [H, 2]; O(H k d^2).
at::Tensor copying_of_tokens(const Circuit& vo, const at::Tensor& map);

/// Intruders once the part of dM that only rescales the head is taken out: leading singular vectors
/// of M' - gain M beside M's, as CircuitMetrics counts them for M'. `gain` [H]. [H, 2] each, left
/// and right. Two SVDs of cores a head.
struct GainFree {
  at::Tensor intruder_vec, intruder_sub;
};
GainFree gain_free_intruders(const Frames& frames, const at::Tensor& gain);

}  // namespace subspace
