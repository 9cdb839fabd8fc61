#include <cstdint>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "kernels/cuda_check.cuh"
#include "kernels/expert_lists.h"

namespace subspace::kernels {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(std::int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

__global__ void make_pairs(ExpertLists p, std::uint32_t* experts, std::uint32_t* positions) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.count) return;
  const std::int64_t expert = p.index[i];
  const bool valid = expert >= 0 && expert < p.experts;
  experts[i] = static_cast<std::uint32_t>(valid ? expert : p.experts);
  positions[i] = static_cast<std::uint32_t>(i);
}

/// offsets[e] is the first place of an expert not below e. A search for each, rather than a thread
/// at each border: all selections may be of one expert, and one thread would fill every offset.
__global__ void find_offsets(ExpertLists p) {
  const std::int64_t e = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (e > p.experts) return;
  std::uint32_t low = 0, high = static_cast<std::uint32_t>(p.count);
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (p.expert[middle] < e) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  p.offsets[e] = low;
}

__device__ bool begins(const ExpertLists& p, std::int64_t i) {
  return p.expert[i] < p.experts && (i == 0 || p.expert[i - 1] != p.expert[i]);
}

__global__ void mark_first(DistinctExperts p, std::uint32_t* first) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < p.lists.count) first[i] = begins(p.lists, i);
}

__global__ void renumber(DistinctExperts p, const std::uint32_t* rank) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const ExpertLists& lists = p.lists;
  if (i >= lists.count) return;
  const std::int64_t mine = std::int64_t{rank[i]} - 1;
  const bool valid = lists.expert[i] < lists.experts;
  p.remapped[lists.selection[i]] = valid ? mine : -1;
  if (begins(lists, i)) p.distinct[mine] = lists.expert[i];
  if (i == lists.count - 1) *p.number = rank[i];
}

/// What is left of the workspace once `used` bytes of it are taken.
struct Rest {
  void* data;
  std::size_t bytes;
};
Rest rest_of(const ExpertLists& p, std::int64_t used) {
  used = (used + 255) / 256 * 256;
  return {static_cast<char*>(p.workspace) + used,
          static_cast<std::size_t>(expert_lists_workspace(p.count) - used)};
}

}  // namespace

void expert_lists_cuda(const ExpertLists& p, Stream stream) {
  auto* queue = static_cast<cudaStream_t>(stream);
  const char* name = "expert_lists";
  if (p.count > 0) {
    auto* experts = static_cast<std::uint32_t*>(p.workspace);
    auto* positions = experts + p.count;
    make_pairs<<<blocks_for(p.count), kThreads, 0, queue>>>(p, experts, positions);
    check_cuda(cudaGetLastError(), name);
    int bits = 1;
    while (p.experts >> bits) ++bits;
    const Rest rest = rest_of(p, 8 * p.count);
    const int count = static_cast<int>(p.count);
    std::size_t needed = 0;
    check_cuda(cub::DeviceRadixSort::SortPairs(nullptr, needed, experts, p.expert, positions,
                                               p.selection, count, 0, bits, queue),
               name);
    if (needed > rest.bytes) launch_failed(name, "the sort wants more workspace than was foreseen");
    check_cuda(cub::DeviceRadixSort::SortPairs(rest.data, needed, experts, p.expert, positions,
                                               p.selection, count, 0, bits, queue),
               name);
  }
  find_offsets<<<blocks_for(p.experts + 1), kThreads, 0, queue>>>(p);
  check_cuda(cudaGetLastError(), name);
}

void distinct_experts_cuda(const DistinctExperts& p, Stream stream) {
  auto* queue = static_cast<cudaStream_t>(stream);
  const char* name = "distinct_experts";
  const std::int64_t count = p.lists.count;
  check_cuda(cudaMemsetAsync(p.number, 0, sizeof(std::int64_t), queue), name);
  if (count == 0) return;
  check_cuda(cudaMemsetAsync(p.distinct, 0, count * sizeof(std::int64_t), queue), name);
  auto* rank = static_cast<std::uint32_t*>(p.lists.workspace);
  mark_first<<<blocks_for(count), kThreads, 0, queue>>>(p, rank);
  check_cuda(cudaGetLastError(), name);
  const Rest rest = rest_of(p.lists, 4 * count);
  std::size_t needed = 0;
  check_cuda(
      cub::DeviceScan::InclusiveSum(nullptr, needed, rank, rank, static_cast<int>(count), queue),
      name);
  if (needed > rest.bytes) launch_failed(name, "the scan wants more workspace than was foreseen");
  check_cuda(
      cub::DeviceScan::InclusiveSum(rest.data, needed, rank, rank, static_cast<int>(count), queue),
      name);
  renumber<<<blocks_for(count), kThreads, 0, queue>>>(p, rank);
  check_cuda(cudaGetLastError(), name);
}

}  // namespace subspace::kernels
