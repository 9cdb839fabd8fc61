#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "base/json.h"

namespace subspace::experts {

/// What chance alone would give: every choice falls on any expert alike and by itself, so that an
/// expert is chosen c times with Poisson's probability of mean m = choices / experts.
struct EvenUse {
  EvenUse(std::int64_t choices, std::int64_t experts);

  double used = 0;     ///< share of experts chosen at all, 1 - exp(-m)
  double entropy = 0;  ///< of the shares of choices, nats: log n - (N / n) sum_c P(c) c log c
  /// Experts expected to be chosen from `low` to `high` times.
  double between(std::int64_t low, std::int64_t high) const;
  /// How often the expert of that rank (1: the most used) is expected to be chosen.
  std::int64_t at_rank(std::int64_t rank) const;

 private:
  std::int64_t experts_;
  std::vector<double> probability_;  // of c choices
  std::vector<double> above_;        // of c or more
};

/// How evenly experts are used. counts [heads, N] int64 on the CPU -> {heads: [..], all}, each
///
///   choices, used, entropy, kl_uniform = log N - entropy, top_percent (share of choices that fall
///   on the most used hundredth of the experts, one at least), largest (share of the most used)
///   chance     the first four for even use
///   curve      {rank, share, chance}: shares of choices from the most used down, at up to 120
///   ranks histogram  {from, to, experts, chance}: experts chosen 0, 1, 2-3, 4-7, .. times
///
/// `heads` only where there are several. Nothing was chosen: zeros. O(heads N log N).
Json use_of_experts(const at::Tensor& counts);

}  // namespace subspace::experts
