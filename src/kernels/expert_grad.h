#pragma once

#include <cstdint>

#include "kernels/dequantize.h"
#include "kernels/device.h"
#include "kernels/element.h"
#include "kernels/ethos_experts.h"
#include "kernels/expert_lists.h"

namespace subspace::kernels {

/// Backward over experts: what the tokens that chose an expert add to the gradient of its rows,
/// with the weights (a, dp) that the backward pass over tokens has written, and t(m) the token of
/// selection m.
///
///   one table (ETHOS):   dh_e = sum_m a_m g_t(m) + dp_m x_t(m),  times gelu'(pre_e) if pre is
///   given two tables (stored): output_e = sum_m a_m g_t(m),  input_e = sum_m dp_m x_t(m)
///
/// grad, vectors  [tokens, width] of `element`: g and x
/// weights        [tokens, selections]
/// lists          of the same selections (count = tokens selections), already made
/// output         [experts, width] of `element`, out: dh, or the gradient of `up`
/// input          [experts, width] of `element`, out: the gradient of `down`; nullptr for one table
/// pre            [experts, width] of `element`: z W1 before its gelu, or nullptr. With it the
///                result is the gradient of z W1 rather than of the table.
/// partial        expert_grad_workspace bytes of scratch
///
/// `width` is a multiple of 32. Every row is written, zeros for an expert nobody chose. No atomics:
/// the order of each sum depends on the selections alone, so the same bits come out each time. A
/// list longer than kLongList is summed in pieces at fixed places of the sorted order and the
/// pieces' sums are added in order, so that one expert that everybody chooses does not keep one
/// warp busy alone. Moves 2 tokens selections width elements, on the GPU mostly from the cache:
/// columns are taken in slices whose rows of all tokens fit there.
struct ExpertGrad {
  const void* grad = nullptr;
  const void* vectors = nullptr;
  const RowWeights* weights = nullptr;
  ExpertLists lists;
  void* output = nullptr;
  void* input = nullptr;
  const void* pre = nullptr;
  float* partial = nullptr;
  std::int64_t tokens = 0;
  std::int64_t selections = 0;
  std::int64_t width = 0;
  Element element = Element::bf16;
};

constexpr std::int64_t kLongList = 512;

/// Bytes: two places (a list may end and another begin) of float32 rows for each piece.
std::int64_t expert_grad_workspace(std::int64_t count, std::int64_t width, bool two_tables);

void expert_grad_cpu(const ExpertGrad& p, int threads, Isa isa = best_isa());

/// Columns a warp takes: 16 lanes' worth of 16-byte vectors, once, twice or four times.
std::int64_t expert_grad_columns(std::int64_t tokens, std::int64_t width, Element element,
                                 std::int64_t cache_bytes);
/// `columns` 0: expert_grad_columns of the current device.
void expert_grad_cuda(const ExpertGrad& p, Stream stream, std::int64_t columns = 0);

}  // namespace subspace::kernels
