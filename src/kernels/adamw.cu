#include <cuda_bf16.h>

#include "kernels/adamw.h"
#include "kernels/adamw_step.h"
#include "kernels/block_reduce.cuh"
#include "kernels/cuda_check.cuh"

namespace subspace::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;

__device__ bool in_vectors(const AdamwRun& run) {
  const auto bits = reinterpret_cast<std::uintptr_t>(run.master) |
                    reinterpret_cast<std::uintptr_t>(run.gradient) |
                    reinterpret_cast<std::uintptr_t>(run.mean) |
                    reinterpret_cast<std::uintptr_t>(run.square);
  return bits % 16 == 0 && reinterpret_cast<std::uintptr_t>(run.value) % 8 == 0;
}

__global__ void __launch_bounds__(kThreads) sum_squares(const AdamwRun* runs, double* partial) {
  __shared__ double reduced[32];
  const AdamwRun run = runs[blockIdx.x];
  const int count = static_cast<int>(run.count);
  const int whole = in_vectors(run) ? count / kVector : 0;
  double sum = 0;
  for (int i = threadIdx.x; i < whole; i += kThreads) {
    const float4 g = reinterpret_cast<const float4*>(run.gradient)[i];
    sum += static_cast<double>(g.x) * g.x + static_cast<double>(g.y) * g.y +
           static_cast<double>(g.z) * g.z + static_cast<double>(g.w) * g.w;
  }
  for (int i = whole * kVector + threadIdx.x; i < count; i += kThreads) {
    sum += static_cast<double>(run.gradient[i]) * run.gradient[i];
  }
  sum = block_sum(sum, reduced);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void decide(Adamw p) {
  __shared__ double reduced[32];
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < p.count; i += blockDim.x) sum += p.partial[i];
  sum = block_sum(sum, reduced);
  if (threadIdx.x != 0) return;
  *p.state = adamw_state_of(p.beta1, p.beta2, p.max_norm, sum, p.state->steps, *p.learning_rate);
}

__device__ void store(const Adamw& p, const AdamwRun& run, int at, float value) {
  if (run.value == nullptr) return;
  if (p.element == Element::bf16) {
    static_cast<__nv_bfloat16*>(run.value)[at] = __float2bfloat16_rn(value);
  } else {
    static_cast<float*>(run.value)[at] = value;
  }
}

__device__ void step_vector(const Adamw& p, const AdamwRun& run, const AdamwState& state,
                            const AdamwRates& rates, int i) {
  float4 g = reinterpret_cast<const float4*>(run.gradient)[i];
  float4 w = reinterpret_cast<const float4*>(run.master)[i];
  float4 m = reinterpret_cast<const float4*>(run.mean)[i];
  float4 v = reinterpret_cast<const float4*>(run.square)[i];
  adamw_number(state, rates, run.decay, g.x, w.x, m.x, v.x);
  adamw_number(state, rates, run.decay, g.y, w.y, m.y, v.y);
  adamw_number(state, rates, run.decay, g.z, w.z, m.z, v.z);
  adamw_number(state, rates, run.decay, g.w, w.w, m.w, v.w);
  reinterpret_cast<float4*>(run.master)[i] = w;
  reinterpret_cast<float4*>(run.mean)[i] = m;
  reinterpret_cast<float4*>(run.square)[i] = v;
  reinterpret_cast<float4*>(run.gradient)[i] = {};
  if (run.value != nullptr && p.element == Element::bf16) {
    const __nv_bfloat162 low = __floats2bfloat162_rn(w.x, w.y);
    const __nv_bfloat162 high = __floats2bfloat162_rn(w.z, w.w);
    reinterpret_cast<uint2*>(run.value)[i] = {*reinterpret_cast<const unsigned*>(&low),
                                              *reinterpret_cast<const unsigned*>(&high)};
    return;
  }
  const float values[kVector] = {w.x, w.y, w.z, w.w};
  for (int j = 0; j < kVector; ++j) store(p, run, i * kVector + j, values[j]);
}

__global__ void __launch_bounds__(kThreads) take_step(Adamw p) {
  const AdamwRun run = p.runs[blockIdx.x];
  const AdamwState state = *p.state;
  const AdamwRates rates(p.beta1, p.beta2, p.eps);
  const int count = static_cast<int>(run.count);
  if (state.skipped != 0) {
    for (int i = threadIdx.x; i < count; i += kThreads) run.gradient[i] = 0;
    return;
  }
  const int whole = in_vectors(run) ? count / kVector : 0;
  for (int i = threadIdx.x; i < whole; i += kThreads) step_vector(p, run, state, rates, i);
  for (int i = whole * kVector + threadIdx.x; i < count; i += kThreads) {
    adamw_number(state, rates, run.decay, run.gradient[i], run.master[i], run.mean[i],
                 run.square[i]);
    store(p, run, i, run.master[i]);
    run.gradient[i] = 0;
  }
}

}  // namespace

void adamw_cuda(const Adamw& p, Stream stream) {
  if (p.count == 0) return;
  auto* queue = static_cast<cudaStream_t>(stream);
  const char* name = "adamw";
  const auto blocks = static_cast<unsigned>(p.count);
  sum_squares<<<blocks, kThreads, 0, queue>>>(p.runs, p.partial);
  check_cuda(cudaGetLastError(), name);
  decide<<<1, 1024, 0, queue>>>(p);
  check_cuda(cudaGetLastError(), name);
  take_step<<<blocks, kThreads, 0, queue>>>(p);
  check_cuda(cudaGetLastError(), name);
}

}  // namespace subspace::kernels
