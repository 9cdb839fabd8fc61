#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/element.h"

namespace subspace::kernels {

/// The experts' hidden vectors, generated from their latents: h = gelu(z W1). The product is the
/// vendor library's; these are what surrounds it.
///
///   forward   out[i] = gelu(pre[i])
///   backward  out[i] = grad[i] gelu'(pre[i])
///
/// pre   [count] of `element`: z W1
/// grad  [count] of `element`, or nullptr for the forward
/// out   [count] of `element`; may be `pre` or `grad` itself
/// Moves two or three elements a value; |gelu - exact| as gelu_fast, then rounded to `element`.
struct ExpertGelu {
  const void* pre = nullptr;
  const void* grad = nullptr;
  void* out = nullptr;
  std::int64_t count = 0;
  Element element = Element::bf16;
};

void expert_gelu_cpu(const ExpertGelu& p, int threads);
void expert_gelu_cuda(const ExpertGelu& p, Stream stream);

/// Rows chosen by number: out[i, :] = rows[index[i], :], zeros for an index outside [0,
/// count_rows). `width` elements a row, any. places[i], where they are wanted (or nullptr), is i,
/// or -1 for such an index: where in `out` to find what index[i] chose.
struct GatherRows {
  const void* rows = nullptr;
  const std::int64_t* index = nullptr;
  void* out = nullptr;
  std::int64_t* places = nullptr;
  std::int64_t count = 0;
  std::int64_t count_rows = 0;
  std::int64_t width = 0;
  Element element = Element::bf16;
};

void gather_rows_cpu(const GatherRows& p, int threads);
void gather_rows_cuda(const GatherRows& p, Stream stream);

/// How to have the hidden vectors of all selections: generate the whole table, or only the distinct
/// experts that were chosen (lists, distinct_experts, gather_rows and a smaller product).
enum class Generate { table, distinct };

/// Distinct costs a sort of the selections and reads a latent for each distinct expert, of which
/// there are at most `selections_in_all` (tokens times selections): it is chosen where that bound
/// is less than a quarter of the table.
Generate choose_generation(std::int64_t selections_in_all, std::int64_t experts);

}  // namespace subspace::kernels
