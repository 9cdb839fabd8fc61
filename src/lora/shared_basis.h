#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "lora/frames.h"

namespace subspace {

/// What the heads of a layer share of one change, in a basis that does not depend on how the
/// adapter is written down (A -> A N, B -> N^-1 B):
///
///   [T^0 | T^1 | ... | T^{H-1}] = U diag(sigma) [..]      T^i the term of head i, change on the
///   left load_j^i = |u_j^T T^i|                                how much head i uses feature j
///
/// and with the heads on top of one another for a change on the right (k, o). Features come in
/// descending order of sigma; sum_i (load_j^i)^2 = sigma_j^2.
struct SharedBasis {
  std::string change;     ///< "q", "v", ... the term's name
  bool read = true;       ///< on the left: directions are read; false: written, or matched as keys
  at::Tensor values;      ///< [r] sigma
  at::Tensor load;        ///< [r, H]
  at::Tensor directions;  ///< [d, r] u_j in the side's space, unit length; sign arbitrary
};

/// For every change that stands on one side with a factor that all heads share, from its frames: at
/// offset 0, unweighted directions of weighted spans. O(d r^2 + H f r^2).
std::vector<SharedBasis> shared_bases(const CircuitProducts& products, const Frames& frames);
std::vector<SharedBasis> shared_bases(const Circuit& circuit, const Frames& frames);

/// Sizes of what biases alone do, base, adapted and their difference, a row a head: [H, 3].
struct BiasMetrics {
  at::Tensor key_prior;  ///< |b_Q W_K^T|: keys preferred by every query
  at::Tensor
      query_only;       ///< |W_Q b_K^T|: the same for all keys; softmax ignores it without rotation
  at::Tensor constant;  ///< |b_V W_O|: written whatever is attended to
};

/// From circuits in homogeneous coordinates at offset 0 (CircuitOptions::homogeneous); undefined
/// where a circuit is not among them.
BiasMetrics bias_metrics(const std::vector<Circuit>& homogeneous);

}  // namespace subspace
