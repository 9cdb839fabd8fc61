#include "kernels/expert_lists.h"

#include <algorithm>

namespace subspace::kernels {
namespace {

/// Where an index counts: its expert, or one past the last for an index out of range.
std::int64_t bucket(const ExpertLists& p, std::int64_t i) {
  const std::int64_t expert = p.index[i];
  return expert >= 0 && expert < p.experts ? expert : p.experts;
}

}  // namespace

std::int64_t expert_lists_workspace(std::int64_t count) {
  // Unsorted pairs, the sort's second copy of them, and its counts, which are less than a byte a
  // pair for its tiles of thousands; checked before each sort.
  return 8 * count + 8 * count + count + (1 << 20);
}

void expert_lists_cpu(const ExpertLists& p) {
  // offsets[e + 1] counts e, then becomes its cursor, and ends as the end of its list.
  std::fill_n(p.offsets, p.experts + 1, 0u);
  std::uint32_t valid = 0;
  for (std::int64_t i = 0; i < p.count; ++i) {
    const std::int64_t expert = bucket(p, i);
    if (expert == p.experts) continue;
    ++p.offsets[expert + 1];
    ++valid;
  }
  std::uint32_t sum = 0;
  for (std::int64_t e = 1; e <= p.experts; ++e) {
    const std::uint32_t own = p.offsets[e];
    p.offsets[e] = sum;
    sum += own;
  }
  std::uint32_t past = valid;
  for (std::int64_t i = 0; i < p.count; ++i) {
    const std::int64_t expert = bucket(p, i);
    const std::uint32_t at = expert == p.experts ? past++ : p.offsets[expert + 1]++;
    p.expert[at] = static_cast<std::uint32_t>(expert);
    p.selection[at] = static_cast<std::uint32_t>(i);
  }
}

void distinct_experts_cpu(const DistinctExperts& p) {
  const ExpertLists& lists = p.lists;
  std::fill_n(p.distinct, lists.count, std::int64_t{0});
  std::int64_t number = 0;
  for (std::int64_t i = 0; i < lists.count; ++i) {
    const std::uint32_t expert = lists.expert[i];
    const bool valid = expert < lists.experts;
    if (valid && (i == 0 || lists.expert[i - 1] != expert)) p.distinct[number++] = expert;
    p.remapped[lists.selection[i]] = valid ? number - 1 : -1;
  }
  *p.number = number;
}

}  // namespace subspace::kernels
