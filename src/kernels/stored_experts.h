#pragma once

#include <cstdint>

#include "kernels/dequantize.h"
#include "kernels/device.h"
#include "kernels/element.h"
#include "kernels/ethos_experts.h"

namespace subspace::kernels {

/// Stored single-neuron experts (PEER), forward: expert e reads along down_e and writes up_e.
///
///   p_j = down_e(j) . x,   a_j = gelu(p_j) s_j,   y = sum_j a_j up_e(j)
///
/// x         [tokens, width] of `element`
/// scores    [tokens, selections] float32;  index [tokens, selections]
/// down, up  [experts, width] of `element`, 16-byte aligned
/// y         [tokens, width] of `element`, out
/// p         [tokens, selections] float32, out: all that the backward pass keeps
/// partial   as EthosExperts has it
///
/// `width` is a multiple of 32 up to 4096, `selections` at most 4096. Indices out of range and NaN
/// as in EthosExperts. 4 tokens selections width flops, and as many bytes read as two rows a
/// selection take. Source: He, "Mixture of a Million Experts" (2024), equations 1 to 3, with the
/// exact gelu.
struct StoredExperts {
  const void* x = nullptr;
  const float* scores = nullptr;
  const std::int64_t* index = nullptr;
  const void* down = nullptr;
  const void* up = nullptr;
  void* y = nullptr;
  float* p = nullptr;
  float* partial = nullptr;
  std::int64_t tokens = 0;
  std::int64_t selections = 0;
  std::int64_t experts = 0;
  std::int64_t width = 0;
  Element element = Element::bf16;
};

/// Backward over tokens, g = dL/dy:
///
///   q_j = up_e(j) . g,  ds_j = gelu(p_j) q_j,  dp_j = gelu'(p_j) s_j q_j,  dx = sum_j dp_j
///   down_e(j)
///
/// grad [tokens, width]; out: grad_scores [tokens, selections] float32, weights [tokens,
/// selections] for expert_grad (two tables: its output is the gradient of `up`, its input that of
/// `down`), grad_x [tokens, width].
struct StoredExpertsGrad {
  const void* grad = nullptr;
  const float* scores = nullptr;
  const std::int64_t* index = nullptr;
  const void* down = nullptr;
  const void* up = nullptr;
  const float* p = nullptr;
  float* grad_scores = nullptr;
  RowWeights* weights = nullptr;
  void* grad_x = nullptr;
  std::int64_t tokens = 0;
  std::int64_t selections = 0;
  std::int64_t experts = 0;
  std::int64_t width = 0;
  Element element = Element::bf16;
};

void stored_experts_cpu(const StoredExperts& p, int threads, Isa isa = best_isa());
void stored_experts_grad_cpu(const StoredExpertsGrad& p, int threads, Isa isa = best_isa());
/// One block a token, or a part of one: its warps share the dot products, then its threads the
/// columns of the sum.
void stored_experts_cuda(const StoredExperts& p, Stream stream);
void stored_experts_grad_cuda(const StoredExpertsGrad& p, Stream stream);

}  // namespace subspace::kernels
