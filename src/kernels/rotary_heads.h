#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/element.h"

namespace subspace::kernels {

/// Where a token's heads lie: head h of token n at data + n token + h head, in elements.
struct HeadRows {
  const void* data = nullptr;
  std::int64_t token = 0, head = 0;
};

/// Queries and keys as attention wants them, from where the projections left them: heads of `width`
/// coordinates, of which those from `begin` on, `dims` of them, are turned by the token's position.
///
///   (a, b) -> (a cos - b sin, a sin + b cos)
///
/// of the pairs (i, i + dims / 2), or (2 i, 2 i + 1) if `interleaved`; these come out taken apart,
/// first elements before second. A key's coordinates from `own_keys` on are those that all heads
/// share, if there are such: shared has one head, and own_keys equals begin.
///
/// q        [tokens, heads, width];  k  [tokens, kv_heads, own_keys];  shared  [tokens, width -
///          own_keys], or no data
/// cos, sin [length, dims / 2] float32; token n stands at position n mod length
/// q_out    [tokens, heads, width], k_out  [tokens, kv_heads, width], out, without gaps
///
/// Operands are of `element`. begin, dims / 2, width and all strides are multiples of the values in
/// 16 bytes, pointers lie at multiples of 16 bytes. Moves every coordinate once.
struct RotaryHeads {
  HeadRows q, k, shared;
  const float* cos = nullptr;
  const float* sin = nullptr;
  void* q_out = nullptr;
  void* k_out = nullptr;
  std::int64_t tokens = 0, heads = 0, kv_heads = 0, width = 0, own_keys = 0;
  std::int64_t begin = 0, dims = 0, length = 0;
  bool interleaved = false;
  Element element = Element::bf16;
};

/// Backward: the gradients of q_out, k_out and of the values, back to where the projections want
/// theirs. `forward` says the shapes; its q, k and shared are where gradients go, q_out and k_out
/// are not used. A shared key's gradient is the sum over heads.
///
/// grad_q [tokens, heads, width], grad_k [tokens, kv_heads, width], grad_v [tokens, kv_heads,
/// value], without gaps; v: where the values' gradients go.
struct RotaryHeadsGrad {
  RotaryHeads forward;
  const void* grad_q = nullptr;
  const void* grad_k = nullptr;
  const void* grad_v = nullptr;
  HeadRows v;
  std::int64_t value = 0;
};

/// Whether sizes and strides are such multiples.
bool rotary_heads_fit(const RotaryHeads& p, std::int64_t value);

void rotary_heads_cpu(const RotaryHeads& p, int threads);
void rotary_heads_cuda(const RotaryHeads& p, Stream stream);
void rotary_heads_grad_cpu(const RotaryHeadsGrad& p, int threads);
void rotary_heads_grad_cuda(const RotaryHeadsGrad& p, Stream stream);

}  // namespace subspace::kernels
