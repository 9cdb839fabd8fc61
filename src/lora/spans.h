#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "lora/terms.h"

namespace subspace {

/// The spans of a side, each once, and which of them every piece has.
struct Spans {
  std::vector<at::Tensor> tensors;  ///< [1 | groups | H, d, p]
  std::vector<std::size_t> of_piece;

  std::int64_t width() const;     ///< of all of them
  std::int64_t matrices() const;  ///< as many as the most of them have
};

Spans spans_of(const Side& side);

/// The spans of one of `count` heads side by side, [d, P] on the CPU, copied along the memory of
/// the first.
at::Tensor side_by_side(const Spans& spans, std::int64_t head, std::int64_t count);

/// Gram matrices of the spans side by side, one for each of `count` matrices: [count, P, P]. One
/// batched product, 2 count d P^2 operations, and a copy of the spans: for a GPU.
at::Tensor batched_gram(const Spans& spans, std::int64_t count);

/// Y^T X of the spans side by side: [most matrices of either, P_right, P_left]. `batched`: in one
/// product, for a GPU; else a head at a time by one thread each, what it copies still in its cache.
at::Tensor products_between(const Spans& right, const Spans& left, bool batched);

/// The part of such products that is between one span of the right and one of the left.
at::Tensor part_between(const at::Tensor& products, const Spans& right, std::size_t b,
                        const Spans& left, std::size_t a);

/// Replaces tensors on a GPU by copies on the CPU, in pinned memory and all in one go: waits for
/// the present stream once. What is the same tensor stays the same tensor.
void fetch(const std::vector<at::Tensor*>& tensors);

}  // namespace subspace
