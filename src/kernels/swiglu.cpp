#include "kernels/swiglu.h"

#include <algorithm>
#include <cmath>

#include "kernels/column_sums.h"
#include "kernels/element_rows.h"
#include "kernels/over_batch.h"

namespace subspace::kernels {
namespace {

constexpr std::int64_t kPieces = 528;

template <Element kElement>
float with_bias(const void* up, const void* bias, std::int64_t row_begin, std::int64_t column) {
  using V = Values<kElement>;
  const float value = V::load(up, row_begin + column);
  return bias != nullptr ? value + V::load(bias, column) : value;
}

template <Element kElement>
void forward(const Swiglu& p, std::int64_t row) {
  for (std::int64_t i = 0; i < p.width; ++i) {
    const float a = with_bias<kElement>(p.up, p.bias, row * 2 * p.width, i);
    const float b = with_bias<kElement>(p.up, p.bias, row * 2 * p.width, p.width + i);
    Values<kElement>::store(p.y, row * p.width + i, a / (1 + std::exp(-a)) * b);
  }
}

template <Element kElement>
void backward(const SwigluGrad& p, std::int64_t row, float* sums) {
  using V = Values<kElement>;
  const std::int64_t begin = row * 2 * p.width;
  for (std::int64_t i = 0; i < p.width; ++i) {
    const float a = with_bias<kElement>(p.up, p.bias, begin, i);
    const float b = with_bias<kElement>(p.up, p.bias, begin, p.width + i);
    const float g = V::load(p.grad, row * p.width + i);
    const float sigmoid = 1 / (1 + std::exp(-a));
    const float da = g * b * sigmoid * (1 + a * (1 - sigmoid)), db = g * a * sigmoid;
    V::store(p.grad_up, begin + i, da);
    V::store(p.grad_up, begin + p.width + i, db);
    if (sums == nullptr) continue;
    sums[i] += da;
    sums[p.width + i] += db;
  }
}

}  // namespace

std::int64_t swiglu_workspace(std::int64_t rows, std::int64_t width) {
  return row_pieces(rows, kPieces).pieces * 2 * width;
}

void swiglu_cpu(const Swiglu& p, int threads) {
  const RowPieces cut = row_pieces(p.rows, kPieces);
  over_batch(cut.pieces, threads, [&](std::int64_t piece) {
    const std::int64_t end = std::min(p.rows, (piece + 1) * cut.rows);
    for (std::int64_t row = piece * cut.rows; row < end; ++row) {
      p.element == Element::f32 ? forward<Element::f32>(p, row) : forward<Element::bf16>(p, row);
    }
  });
}

void swiglu_grad_cpu(const SwigluGrad& p, int threads) {
  const RowPieces cut = row_pieces(p.rows, kPieces);
  over_batch(cut.pieces, threads, [&](std::int64_t piece) {
    float* sums = p.grad_bias != nullptr ? p.partial + piece * 2 * p.width : nullptr;
    if (sums != nullptr) std::fill_n(sums, 2 * p.width, 0.0f);
    const std::int64_t end = std::min(p.rows, (piece + 1) * cut.rows);
    for (std::int64_t row = piece * cut.rows; row < end; ++row) {
      if (p.element == Element::f32) {
        backward<Element::f32>(p, row, sums);
      } else {
        backward<Element::bf16>(p, row, sums);
      }
    }
  });
  if (p.grad_bias == nullptr) return;
  add_column_sums_cpu(p.partial, cut.pieces, 2 * p.width, 2 * p.width, p.grad_bias);
}

}  // namespace subspace::kernels
