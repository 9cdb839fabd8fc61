#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/element_rows.h"
#include "kernels/over_batch.h"

namespace subspace::kernels {
namespace {

constexpr std::int64_t kRows = 4;  // a thread takes at a time

template <Element kElement>
void one_row(const CrossEntropy& p, std::int64_t row) {
  using V = Values<kElement>;
  const std::int64_t begin = row * p.stride, target = p.targets[row];
  const bool counts = target >= 0;
  float most = -std::numeric_limits<float>::infinity();
  for (std::int64_t c = 0; c < p.columns; ++c) {
    most = std::max(most, V::load(p.logits, begin + c));
  }
  float sum = 0;
  for (std::int64_t c = 0; c < p.columns; ++c) {
    sum += std::exp(V::load(p.logits, begin + c) - most);
  }
  const float log_sum = most + std::log(sum);
  p.loss[row] = !counts              ? 0
                : target < p.columns ? log_sum - V::load(p.logits, begin + target)
                                     : std::numeric_limits<float>::quiet_NaN();
  if (p.factor == nullptr) return;
  const float factor = *p.factor;
  for (std::int64_t c = 0; c < p.stride; ++c) {
    float gradient = 0;
    if (counts && c < p.columns) {
      gradient = factor * (std::exp(V::load(p.logits, begin + c) - log_sum) - (c == target));
    }
    V::store(p.logits, begin + c, gradient);
  }
}

}  // namespace

void cross_entropy_cpu(const CrossEntropy& p, int threads) {
  over_batch((p.rows + kRows - 1) / kRows, threads, [&](std::int64_t block) {
    for (std::int64_t row = block * kRows; row < std::min(p.rows, (block + 1) * kRows); ++row) {
      p.element == Element::f32 ? one_row<Element::f32>(p, row) : one_row<Element::bf16>(p, row);
    }
  });
}

}  // namespace subspace::kernels
