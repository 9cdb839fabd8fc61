#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/rotary_heads.h"

namespace subspace::kernels {

/// Softmax attention over short sequences with heads of 32, bfloat16, one head's whole work by one
/// block, so that nothing but operands and results touches memory:
///
///   P = softmax(scale q k^T)  (causal: keys behind the query left out),   out = P v
///
/// q, k  [rows, length, heads, 32] without gaps;  v  the same where it lies: head h of token n at
///       v.data + n v.token + h v.head
/// out   [rows, length, heads, 32], out;  lse  [rows, heads, length] float32, out: log of the sum
/// of
///       exponentials
///
/// length is a multiple of 32, at most 128; v's strides are multiples of 8 and pointers lie at
/// multiples of 16 bytes. P is rounded to bfloat16 before its product with v. Moves each operand
/// once: 256 bytes a token and head; PyTorch's kernels are made for long sequences and take several
/// times that bound here.
struct ShortAttention {
  const void* q = nullptr;
  const void* k = nullptr;
  HeadRows v;
  void* out = nullptr;
  float* lse = nullptr;
  std::int64_t rows = 0, length = 0, heads = 0;
  float scale = 1;
  bool causal = false;
};

/// Backward, from g = dL/dout:
///
///   dS = P (g v^T - sum(g out)),  dq = scale dS k,  dk = scale dS^T q,  dv = P^T g
///
/// forward    the operands; its out and lse are read
/// grad       as out;  grad_q, grad_k, grad_v  [rows, length, heads, 32] without gaps, out
///
/// No sum goes across blocks: the same bits every time. P and dS are rounded to bfloat16 before
/// their products.
struct ShortAttentionGrad {
  ShortAttention forward;
  const void* grad = nullptr;
  void* grad_q = nullptr;
  void* grad_k = nullptr;
  void* grad_v = nullptr;
};

constexpr std::int64_t kShortHead = 32;
constexpr std::int64_t kShortLength = 128;

void short_attention_cpu(const ShortAttention& p, int threads);
void short_attention_cuda(const ShortAttention& p, Stream stream);
void short_attention_grad_cpu(const ShortAttentionGrad& p, int threads);
void short_attention_grad_cuda(const ShortAttentionGrad& p, Stream stream);

}  // namespace subspace::kernels
