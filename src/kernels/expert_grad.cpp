#include "kernels/expert_grad.h"

#include <algorithm>

#include "kernels/expert_rows.h"
#include "kernels/gelu.h"
#include "kernels/over_batch.h"

namespace subspace::kernels {
namespace {

constexpr std::int64_t kExperts = 32;   // a thread takes at a time
constexpr std::int64_t kColumns = 256;  // so does a long list not keep one thread busy alone

const char* at(const void* rows, std::int64_t element) {
  return static_cast<const char*>(rows) + element;
}

/// Columns [from, from + n) of one expert.
void sum_expert(const ExpertGrad& p, const RowOps& ops, std::int64_t e, std::int64_t from,
                std::int64_t n) {
  const std::int64_t bytes = element_bytes(p.element);
  alignas(64) float output[kColumns] = {};
  alignas(64) float input[kColumns] = {};
  float* second = p.input == nullptr ? output : input;
  for (std::int64_t i = p.lists.offsets[e]; i < p.lists.offsets[e + 1]; ++i) {
    const std::int64_t selection = p.lists.selection[i];
    const std::int64_t row = (selection / p.selections * p.width + from) * bytes;
    const RowWeights weights = p.weights[selection];
    ops.add(at(p.grad, row), weights.output, output, n);
    ops.add(at(p.vectors, row), weights.input, second, n);
  }
  const std::int64_t place = (e * p.width + from) * bytes;
  if (p.pre != nullptr) {
    ops.widen(at(p.pre, place), input, n);
    for (std::int64_t i = 0; i < n; ++i) output[i] *= gelu_fast(input[i]).slope;
  }
  ops.narrow(output, static_cast<char*>(p.output) + place, n);
  if (p.input != nullptr) ops.narrow(input, static_cast<char*>(p.input) + place, n);
}

}  // namespace

std::int64_t expert_grad_workspace(std::int64_t count, std::int64_t width, bool two_tables) {
  const std::int64_t pieces = (count + kLongList - 1) / kLongList;
  return pieces * 2 * width * (two_tables ? 2 : 1) * 4;
}

void expert_grad_cpu(const ExpertGrad& p, int threads, Isa isa) {
  const RowOps& ops = row_ops(p.element, isa);
  const std::int64_t slices = (p.width + kColumns - 1) / kColumns;
  const std::int64_t groups = (p.lists.experts + kExperts - 1) / kExperts;
  over_batch(groups * slices, threads, [&](std::int64_t item) {
    const std::int64_t from = item % slices * kColumns;
    const std::int64_t end = std::min(p.lists.experts, (item / slices + 1) * kExperts);
    for (std::int64_t e = item / slices * kExperts; e < end; ++e) {
      sum_expert(p, ops, e, from, std::min(kColumns, p.width - from));
    }
  });
}

std::int64_t expert_grad_columns(std::int64_t tokens, std::int64_t width, Element element,
                                 std::int64_t cache_bytes) {
  const std::int64_t bytes = element_bytes(element);
  const std::int64_t least = 16 * 16 / bytes;
  std::int64_t columns = 4 * least;
  // Half of the cache: the other half is for what streams through it, and a cache of two halves may
  // hold a row twice.
  while (columns > least &&
         (columns >= 2 * width || 2 * tokens * columns * bytes > cache_bytes / 2)) {
    columns /= 2;
  }
  return columns;
}

}  // namespace subspace::kernels
