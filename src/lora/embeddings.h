#pragma once

#include <string>

#include "attention/layer.h"
#include "checkpoint/checkpoint.h"

namespace subspace {

/// A table of one vector a token, and where it is stored.
struct TokenTable {
  std::string name;
  at::Tensor rows;  ///< [V, d] float32
};

/// W_E, the input embedding, by the ends of its names in all families. Throws NotFound without one,
/// InvalidShape, and what decoding throws. O(V d) memory.
TokenTable input_embedding(const Checkpoint& model, int threads);

/// W_U as [V, d], what logits are inner products with: the output embedding of a model that has one
/// of its own, else the input embedding (tied, or an encoder's, which has no other words). The norm
/// in front of it is folded in, gamma and LayerNorm's centring, and the mean over tokens is taken
/// out: it adds the same to every logit, which softmax does not see.
TokenTable output_embedding(const Checkpoint& model, int threads);

/// G = W_U^T W_E, [d, d] float64: M maps token t to logits W_E[t] M W_U^T, and the nonzero
/// eigenvalues of W_E M W_U^T are those of W_O G W_V. 2 V d^2 operations.
at::Tensor token_map(const TokenTable& input, const TokenTable& output);

/// S = mean over tokens of x^T x, x = W_E[t] through the first layer's norm, [d, d] float64: the
/// data-free stand-in for what layer 0 reads, all tokens as often, no positions. `folded`: gamma
/// (and LayerNorm's centring and bias) is part of the circuit, so x is divided by its length alone.
/// Without a norm S = W_E^T W_E / V. 2 V d^2 operations.
at::Tensor embedding_moment(const TokenTable& input, const Norm& norm, bool folded);

}  // namespace subspace
