#include "nn/expert_functions.h"

#include <ATen/ATen.h>

#include "ops/ops.h"

namespace subspace::nn {
namespace {

bool is_double(const at::Tensor& x) { return x.scalar_type() == at::kDouble; }

/// The k largest along the last axis, equal ones in order of place.
std::tuple<at::Tensor, at::Tensor> first_largest(const at::Tensor& values, std::int64_t k) {
  auto [sorted, places] = values.sort(/*stable=*/true, /*dim=*/-1, /*descending=*/true);
  return {sorted.narrow(-1, 0, k), places.narrow(-1, 0, k)};
}

/// The best k pairs are among the best k of either side. Candidates stand in order of their expert,
/// so that of equal sums the smaller index comes first.
Selections choose_by_sorting(const at::Tensor& s1, const at::Tensor& s2, std::int64_t k) {
  const auto [v1, i1] = first_largest(s1, k);
  const auto [v2, i2] = first_largest(s2, k);
  const at::Tensor sums = (v1.unsqueeze(-1) + v2.unsqueeze(-2)).flatten(-2);
  const at::Tensor experts = (i1.unsqueeze(-1) * s2.size(-1) + i2.unsqueeze(-2)).flatten(-2);
  const at::Tensor order = experts.argsort(/*stable=*/true, /*dim=*/-1, /*descending=*/false);
  const auto [best, places] = first_largest(sums.gather(-1, order), k);
  return {best.softmax(-1), experts.gather(-1, order).gather(-1, places)};
}

/// Rows of a table for every selection, [T, S, width].
at::Tensor rows_of_selections(const at::Tensor& table, const at::Tensor& index) {
  return table.index_select(0, index.flatten()).view({index.size(0), index.size(1), -1});
}

/// sum_j gelu(read_j . x) s_j written_j.
at::Tensor by_rows(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& read,
                   const at::Tensor& written) {
  const at::Tensor p = at::matmul(read, x.unsqueeze(-1)).squeeze(-1);
  const at::Tensor weights = at::gelu(p) * scores.to(x.scalar_type());
  return at::matmul(weights.unsqueeze(1), written).squeeze(1);
}

}  // namespace

Selections choose_experts(const at::Tensor& s1, const at::Tensor& s2, std::int64_t k) {
  if (is_double(s1)) return choose_by_sorting(s1, s2, k);
  auto [scores, index] = ops::product_key_topk(s1, s2, k, /*softmax=*/true);
  return {scores, index};
}

at::Tensor generated_experts(const at::Tensor& xp, const at::Tensor& scores,
                             const at::Tensor& index, const at::Tensor& z, const at::Tensor& w1) {
  if (!is_double(xp)) return ops::ethos_experts(xp, scores, index, z, w1);
  const at::Tensor rows = rows_of_selections(at::gelu(at::matmul(z, w1)), index);
  return by_rows(xp, scores, rows, rows);
}

at::Tensor stored_experts(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& index,
                          const at::Tensor& down, const at::Tensor& up) {
  if (!is_double(x)) return ops::stored_experts(x, scores, index, down, up);
  return by_rows(x, scores, rows_of_selections(down, index), rows_of_selections(up, index));
}

}  // namespace subspace::nn
