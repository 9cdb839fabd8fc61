#pragma once

#include <ATen/core/Tensor.h>

namespace subspace::nn {

// The operators of src/ops as layers call them: those in float32 and bfloat16, and the same by
// plain operators of PyTorch in float64, which kernels do not have. The latter store a vector for
// every selection: they are there to be compared with.

/// What a router chose for each token: weights and experts, [T, H, k].
struct Selections {
  at::Tensor scores;  ///< float32, or float64 where the keys' scores are; each head's sum to one
  at::Tensor index;   ///< int64
};

/// What a layer with experts chose in one pass, and the rows [T, d] that its router read. A mixture
/// has one head.
struct ExpertChoices {
  at::Tensor x;
  Selections chosen;
};

/// The k largest sums of a score of either side, s1, s2 [T, H, n], and the softmax of these; expert
/// a n + b, ties: smaller index first.
Selections choose_experts(const at::Tensor& s1, const at::Tensor& s2, std::int64_t k);

/// ops::ethos_experts: xp [T, d_h], scores, index [T, S], z [N, d_l], w1 [d_l, d_h] -> [T, d_h].
at::Tensor generated_experts(const at::Tensor& xp, const at::Tensor& scores,
                             const at::Tensor& index, const at::Tensor& z, const at::Tensor& w1);

/// ops::stored_experts: x [T, d], scores, index [T, S], down, up [N, d] -> [T, d].
at::Tensor stored_experts(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& index,
                          const at::Tensor& down, const at::Tensor& up);

}  // namespace subspace::nn
