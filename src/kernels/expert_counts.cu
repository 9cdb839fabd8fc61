#include <algorithm>

#include "kernels/cuda_check.cuh"
#include "kernels/expert_counts.h"

namespace subspace::kernels {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kBlocks = 4096;

__global__ void count_choices(ExpertCounts p) {
  const std::int64_t choices = p.tokens * p.heads * p.per_head;
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < choices;
       i += stride) {
    const std::int64_t expert = p.index[i], head = i / p.per_head % p.heads;
    if (expert < 0 || expert >= p.experts) continue;
    atomicAdd(reinterpret_cast<unsigned long long*>(p.counts) + head * p.experts + expert, 1ULL);
  }
}

}  // namespace

void expert_counts_cuda(const ExpertCounts& p, Stream stream) {
  const std::int64_t choices = p.tokens * p.heads * p.per_head;
  if (choices == 0) return;
  const auto blocks = static_cast<unsigned>(std::min(kBlocks, (choices + kThreads - 1) / kThreads));
  count_choices<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  check_cuda(cudaGetLastError(), "expert_counts");
}

}  // namespace subspace::kernels
