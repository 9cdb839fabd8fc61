#include "kernels/stored_experts.h"

#include <algorithm>
#include <limits>

#include "kernels/expert_rows.h"
#include "kernels/gelu.h"
#include "kernels/over_batch.h"

namespace subspace::kernels {
namespace {

constexpr std::int64_t kMostWidth = 4096;
constexpr std::int64_t kTokens = 4;  // a thread takes at a time

/// Token by token: dot products with rows of `first`, `weigh(flat position, dot product)`, and the
/// so weighted sum of rows of `second`.
template <typename Params, typename Weigh>
void walk(const Params& p, const void* vectors, const void* first, const void* second, void* sums,
          int threads, Isa isa, const Weigh& weigh) {
  const RowOps& ops = row_ops(p.element, isa);
  const std::int64_t bytes = p.width * element_bytes(p.element);
  const auto row = [&](const void* rows, std::int64_t at) {
    return static_cast<const char*>(rows) + at * bytes;
  };
  over_batch((p.tokens + kTokens - 1) / kTokens, threads, [&](std::int64_t block) {
    alignas(64) float vector[kMostWidth];
    alignas(64) float sum[kMostWidth];
    const std::int64_t end = std::min(p.tokens, (block + 1) * kTokens);
    for (std::int64_t t = block * kTokens; t < end; ++t) {
      ops.widen(row(vectors, t), vector, p.width);
      std::fill_n(sum, p.width, 0.0f);
      for (std::int64_t at = t * p.selections; at < (t + 1) * p.selections; ++at) {
        const std::int64_t expert = p.index[at];
        if (expert < 0 || expert >= p.experts) {
          weigh(at, std::numeric_limits<float>::quiet_NaN());
          std::fill_n(sum, p.width, std::numeric_limits<float>::quiet_NaN());
          continue;
        }
        __builtin_prefetch(row(second, expert));
        const float dot = ops.dot(row(first, expert), vector, p.width);
        ops.add(row(second, expert), weigh(at, dot), sum, p.width);
      }
      ops.narrow(sum, static_cast<char*>(sums) + t * bytes, p.width);
    }
  });
}

}  // namespace

void stored_experts_cpu(const StoredExperts& p, int threads, Isa isa) {
  walk(p, p.x, p.down, p.up, p.y, threads, isa, [&](std::int64_t at, float dot) {
    p.p[at] = dot;
    return gelu_fast(dot).value * p.scores[at];
  });
}

void stored_experts_grad_cpu(const StoredExpertsGrad& p, int threads, Isa isa) {
  walk(p, p.grad, p.up, p.down, p.grad_x, threads, isa, [&](std::int64_t at, float dot) {
    const Gelu<float> gelu = gelu_fast(p.p[at]);
    const float input = gelu.slope * p.scores[at] * dot;
    p.grad_scores[at] = gelu.value * dot;
    p.weights[at] = {gelu.value * p.scores[at], input};
    return input;
  });
}

}  // namespace subspace::kernels
