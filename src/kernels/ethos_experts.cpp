#include "kernels/ethos_experts.h"

#include <algorithm>
#include <limits>

#include "kernels/expert_rows.h"
#include "kernels/gelu.h"
#include "kernels/over_batch.h"

namespace subspace::kernels {
namespace {

constexpr std::int64_t kMostWidth = 1024;
constexpr std::int64_t kTokens = 8;  // a thread takes at a time

template <typename Params>
const void* row_of(const Params& p, std::int64_t expert) {
  return static_cast<const char*>(p.table) + expert * p.width * element_bytes(p.element);
}

/// Asks for a whole row: the next one comes from memory while this one is worked on, and the
/// processor's own prefetching sees no pattern in rows that are drawn.
template <typename Params>
void fetch(const Params& p, std::int64_t expert) {
  if (expert < 0 || expert >= p.experts) return;
  const auto* row = static_cast<const char*>(row_of(p, expert));
  const std::int64_t bytes = p.width * element_bytes(p.element);
  for (std::int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(row + line);
}

/// Token by token: `weigh(flat position, dot product)` gives the weight of a row.
template <typename Params, typename Weigh>
void walk(const Params& p, const void* vectors, void* sums, int threads, Isa isa,
          const Weigh& weigh) {
  const RowOps& ops = row_ops(p.element, isa);
  const std::int64_t bytes = p.width * element_bytes(p.element);
  over_batch((p.tokens + kTokens - 1) / kTokens, threads, [&](std::int64_t block) {
    alignas(64) float vector[kMostWidth];
    alignas(64) float sum[kMostWidth];
    const std::int64_t end = std::min(p.tokens, (block + 1) * kTokens);
    for (std::int64_t t = block * kTokens; t < end; ++t) {
      ops.widen(static_cast<const char*>(vectors) + t * bytes, vector, p.width);
      std::fill_n(sum, p.width, 0.0f);
      for (std::int64_t at = t * p.selections; at < (t + 1) * p.selections; ++at) {
        const std::int64_t expert = p.index[at];
        const bool valid = expert >= 0 && expert < p.experts;
        if (!valid) {
          std::fill_n(sum, p.width, std::numeric_limits<float>::quiet_NaN());
          weigh(at, std::numeric_limits<float>::quiet_NaN());
          continue;
        }
        const void* row = row_of(p, expert);
        if (at + 1 < (t + 1) * p.selections) fetch(p, p.index[at + 1]);
        ops.add(row, weigh(at, ops.dot(row, vector, p.width)), sum, p.width);
      }
      ops.narrow(sum, static_cast<char*>(sums) + t * bytes, p.width);
    }
  });
}

}  // namespace

void ethos_experts_cpu(const EthosExperts& p, int threads, Isa isa) {
  walk(p, p.xp, p.acc, threads, isa, [&](std::int64_t at, float dot) {
    p.p[at] = dot;
    return gelu_fast(dot).value * p.scores[at];
  });
}

void ethos_experts_grad_cpu(const EthosExpertsGrad& p, int threads, Isa isa) {
  walk(p, p.grad, p.grad_xp, threads, isa, [&](std::int64_t at, float dot) {
    const Gelu<float> gelu = gelu_fast(p.p[at]);
    const float input = gelu.slope * p.scores[at] * dot;
    p.grad_scores[at] = gelu.value * dot;
    p.weights[at] = {gelu.value * p.scores[at], input};
    return input;
  });
}

EthosWalk ethos_walk(std::int64_t tokens, std::int64_t selections, std::int64_t experts,
                     std::int64_t width, Element element, std::int64_t cache_bytes) {
  EthosWalk how;
  how.sorted =
      experts * width * element_bytes(element) > cache_bytes / 2 && tokens * selections > experts;
  return how;
}

WalkSplit walk_split(std::int64_t tokens, std::int64_t selections) {
  constexpr std::int64_t kWalks = 1024;  // that fill a GPU
  constexpr std::int64_t kMostParts = 64, kLeast = 8;
  const std::int64_t wanted = std::min(kMostParts, kWalks / std::max<std::int64_t>(tokens, 1));
  if (wanted < 2 || selections <= kLeast) return {1, selections};
  const std::int64_t each =
      std::max(kLeast, (selections + wanted * kLeast - 1) / (wanted * kLeast) * kLeast);
  return {(selections + each - 1) / each, each};
}

}  // namespace subspace::kernels
