#include "kernels/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/column_sums.h"
#include "kernels/element_rows.h"
#include "kernels/over_batch.h"

namespace subspace::kernels {
namespace {

constexpr std::int64_t kPieces = 1056;  // eight blocks for each of 132 multiprocessors
constexpr std::int64_t kRows = 64;      // a thread takes at a time

template <Element kElement>
void forward(const RmsNorm& p, std::int64_t row) {
  using V = Values<kElement>;
  float squares = 0;
  const std::int64_t x = row * p.x_stride, y = row * p.width;
  for (std::int64_t i = 0; i < p.width; ++i) {
    float s = V::load(p.x, x + i);
    if (p.delta != nullptr) {
      const float bias = p.bias != nullptr ? V::load(p.bias, i) : 0;
      s = V::rounded(s + (V::load(p.delta, y + i) + bias));
      V::store(p.sum, y + i, s);
    }
    squares += s * s;
  }
  const float mean = squares / static_cast<float>(p.width);
  const float r = 1 / std::sqrt(mean + static_cast<float>(p.eps));
  p.scale[row] = r;
  const void* from = p.delta != nullptr ? p.sum : p.x;
  const std::int64_t begin = p.delta != nullptr ? y : x;
  for (std::int64_t i = 0; i < p.width; ++i) {
    V::store(p.y, y + i, r * V::load(from, begin + i) * V::load(p.weight, i));
  }
}

template <Element kElement>
void backward(const RmsNormGrad& p, std::int64_t row, float* weight_sum, float* bias_sum) {
  using V = Values<kElement>;
  const std::int64_t at = row * p.width, s_at = row * p.s_stride, out = row * p.grad_stride;
  const float r = p.scale[row];
  float dot = 0;
  for (std::int64_t i = 0; i < p.width; ++i) {
    dot += V::load(p.grad, at + i) * V::load(p.weight, i) * V::load(p.s, s_at + i);
  }
  const float mean = r * r * dot / static_cast<float>(p.width);
  for (std::int64_t i = 0; i < p.width; ++i) {
    const float g = V::load(p.grad, at + i), s = V::load(p.s, s_at + i);
    float sum = r * (g * V::load(p.weight, i) - s * mean);
    if (p.grad_sum != nullptr) sum += V::load(p.grad_sum, at + i);
    weight_sum[i] += g * s * r;
    bias_sum[i] += sum;
    V::store(p.grad_s, out + i, sum);
  }
}

}  // namespace

std::int64_t rms_norm_workspace(std::int64_t rows, std::int64_t width) {
  return row_pieces(rows, kPieces).pieces * 2 * width;
}

void rms_norm_cpu(const RmsNorm& p, int threads) {
  over_batch((p.rows + kRows - 1) / kRows, threads, [&](std::int64_t block) {
    for (std::int64_t row = block * kRows; row < std::min(p.rows, (block + 1) * kRows); ++row) {
      p.element == Element::f32 ? forward<Element::f32>(p, row) : forward<Element::bf16>(p, row);
    }
  });
}

void rms_norm_grad_cpu(const RmsNormGrad& p, int threads) {
  const RowPieces cut = row_pieces(p.rows, kPieces);
  over_batch(cut.pieces, threads, [&](std::int64_t piece) {
    float* weight_sum = p.partial + piece * 2 * p.width;
    std::fill_n(weight_sum, 2 * p.width, 0.0f);
    const std::int64_t end = std::min(p.rows, (piece + 1) * cut.rows);
    for (std::int64_t row = piece * cut.rows; row < end; ++row) {
      if (p.element == Element::f32) {
        backward<Element::f32>(p, row, weight_sum, weight_sum + p.width);
      } else {
        backward<Element::bf16>(p, row, weight_sum, weight_sum + p.width);
      }
    }
  });
  add_column_sums_cpu(p.partial, cut.pieces, 2 * p.width, p.width, p.grad_weight);
  if (p.grad_bias == nullptr) return;
  add_column_sums_cpu(p.partial + p.width, cut.pieces, 2 * p.width, p.width, p.grad_bias);
}

}  // namespace subspace::kernels
