#include "kernels/expert_counts.h"

namespace subspace::kernels {

void expert_counts_cpu(const ExpertCounts& p, int /*threads*/) {
  const std::int64_t* index = p.index;
  for (std::int64_t token = 0; token < p.tokens; ++token) {
    for (std::int64_t head = 0; head < p.heads; ++head) {
      for (std::int64_t j = 0; j < p.per_head; ++j, ++index) {
        if (*index >= 0 && *index < p.experts) ++p.counts[head * p.experts + *index];
      }
    }
  }
}

}  // namespace subspace::kernels
