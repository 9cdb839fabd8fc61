#pragma once

#include <cstdint>

#include "kernels/dequantize.h"
#include "kernels/device.h"
#include "kernels/element.h"

namespace subspace::kernels {

/// What a selection contributes to its expert's gradient: `output` times dL/dacc of its token plus
/// `input` times its xp. Pairs, so that the walk over experts fetches both at once.
struct RowWeights {
  float output;
  float input;
};

/// How few tokens are walked by a GPU that they alone would leave idle: each token's selections in
/// `parts` runs of `each`, the last one shorter, summed apart and then in order. Of shapes alone.
struct WalkSplit {
  std::int64_t parts = 1, each = 0;
};
WalkSplit walk_split(std::int64_t tokens, std::int64_t selections);

/// The reordered ETHOS layer between its projections, forward: every token's chosen experts, whose
/// hidden vectors h_e are rows of a table generated once a step.
///
///   p_j = h_e(j) . xp,   a_j = gelu(p_j) s_j,   acc = sum_j a_j h_e(j)
///
/// xp      [tokens, width] of `element`
/// scores  [tokens, selections] float32, s_j;  index [tokens, selections], e(j)
/// table   [experts, width] of `element`, 16-byte aligned
/// acc     [tokens, width] of `element`, out
/// p       [tokens, selections] float32, out: all that the backward pass keeps
/// partial [tokens, walk_split().parts, width] float32 of scratch, or nullptr: the GPU then does
/// not
///         split; the CPU never does
///
/// `width` is a multiple of 32 up to 1024; `selections` = heads times k, any number; `experts`
/// below 2^31. An index outside [0, experts) reads nothing: its p is NaN, and so is its token's
/// acc. NaN in scores gives NaN in that token alone. Sums are float32. On the GPU each row is read
/// once, and each token's selections (each part's, where they are split) are walked in the table's
/// order (see ethos_walk), so the result does not depend on the order they are given in. 4 tokens
/// selections width flops. Source: spec "ETHOS", Medford et al. 2025, with the table in place of
/// per-selection generation.
struct EthosExperts {
  const void* xp = nullptr;
  const float* scores = nullptr;
  const std::int64_t* index = nullptr;
  const void* table = nullptr;
  void* acc = nullptr;
  float* p = nullptr;
  float* partial = nullptr;
  std::int64_t tokens = 0;
  std::int64_t selections = 0;
  std::int64_t experts = 0;
  std::int64_t width = 0;
  Element element = Element::bf16;
};

/// Backward over tokens, g = dL/dacc:
///
///   q_j = h_e(j) . g,  ds_j = gelu(p_j) q_j,  dp_j = gelu'(p_j) s_j q_j,  dxp = sum_j dp_j h_e(j)
///
/// grad         [tokens, width] of `element`, g
/// grad_scores  [tokens, selections] float32, out
/// weights      [tokens, selections], out: (a_j, dp_j), for expert_grad
/// grad_xp      [tokens, width] of `element`, out
/// The rest as in EthosExperts.
struct EthosExpertsGrad {
  const void* grad = nullptr;
  const float* scores = nullptr;
  const std::int64_t* index = nullptr;
  const void* table = nullptr;
  const float* p = nullptr;
  float* grad_scores = nullptr;
  RowWeights* weights = nullptr;
  void* grad_xp = nullptr;
  std::int64_t tokens = 0;
  std::int64_t selections = 0;
  std::int64_t experts = 0;
  std::int64_t width = 0;
  Element element = Element::bf16;
};

void ethos_experts_cpu(const EthosExperts& p, int threads, Isa isa = best_isa());
void ethos_experts_grad_cpu(const EthosExpertsGrad& p, int threads, Isa isa = best_isa());

/// How the GPU walks: rows in flight for each warp, the blocks a multiprocessor is asked to hold,
/// and whether a token's selections are first sorted by expert, so that the warps in flight move
/// through the table together and find in the second-level cache what others have just fetched.
struct EthosWalk {
  int rows = 8;
  int blocks = 4;
  bool sorted = true;
};
/// Sorting pays where the table exceeds the cache and is read more than once.
EthosWalk ethos_walk(std::int64_t tokens, std::int64_t selections, std::int64_t experts,
                     std::int64_t width, Element element, std::int64_t cache_bytes);
/// Without `walk`: ethos_walk of the current device.
void ethos_experts_cuda(const EthosExperts& p, Stream stream, const EthosWalk* walk = nullptr);
void ethos_experts_grad_cuda(const EthosExpertsGrad& p, Stream stream,
                             const EthosWalk* walk = nullptr);

}  // namespace subspace::kernels
