#pragma once

#include <cstdint>

#include "kernels/device.h"

namespace subspace::kernels {

/// Each expert's selections: a stable sort of the selections by expert.
///
///   selection[offsets[e]], ..., selection[offsets[e + 1] - 1]: where index is e, ascending
///
/// index      [count], the chosen experts of all tokens
/// expert     [count] out: the same, sorted; selections whose index is outside [0, experts) come
///            last, as `experts`
/// selection  [count] out: their positions in `index`
/// offsets    [experts + 1] out
/// workspace  expert_lists_workspace bytes of device memory, 256-byte aligned (CUDA only)
///
/// `count` below 2^31, `experts` below 2^31. Stable, so the same bits each time.
struct ExpertLists {
  const std::int64_t* index = nullptr;
  std::int64_t count = 0;
  std::int64_t experts = 0;
  std::uint32_t* expert = nullptr;
  std::uint32_t* selection = nullptr;
  std::uint32_t* offsets = nullptr;
  void* workspace = nullptr;
};

std::int64_t expert_lists_workspace(std::int64_t count);

/// A counting sort: count + experts steps.
void expert_lists_cpu(const ExpertLists& p);
/// A radix sort of (expert, position) pairs, as many bits as `experts` has.
void expert_lists_cuda(const ExpertLists& p, Stream stream);

/// The experts that occur in such lists, once each, and the selections renumbered to them.
///
/// distinct  [count] out: the experts in ascending order; the rest of the array is zero
/// remapped  [count] out, int64: distinct[remapped[i]] == index[i]; -1 for an index out of range
/// number    one int64, out: how many there are
///
/// CUDA: `workspace` as above may be the same memory.
struct DistinctExperts {
  ExpertLists lists;
  std::int64_t* distinct = nullptr;
  std::int64_t* remapped = nullptr;
  std::int64_t* number = nullptr;
};

void distinct_experts_cpu(const DistinctExperts& p);
void distinct_experts_cuda(const DistinctExperts& p, Stream stream);

}  // namespace subspace::kernels
