#pragma once

#include <cstdint>

#include "kernels/device.h"

namespace subspace::kernels {

/// How often each head chooses each expert, added to what was counted before:
///
///   counts[h, e] += |{(t, j): index[t, h, j] = e}|
///
/// index   [tokens, heads, per_head]; what is outside [0, experts) is not counted
/// counts  [heads, experts]
///
/// Whole numbers, so the order of additions shows nowhere. One pass over the indices.
struct ExpertCounts {
  const std::int64_t* index = nullptr;
  std::int64_t* counts = nullptr;
  std::int64_t tokens = 0, heads = 0, per_head = 0, experts = 0;
};

void expert_counts_cpu(const ExpertCounts& p, int threads);
void expert_counts_cuda(const ExpertCounts& p, Stream stream);

}  // namespace subspace::kernels
