#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/element.h"

namespace subspace::kernels {

/// The gate of a feed-forward layer, with the bias of the product before it:
///
///   [a, b] = up + bias,   y = silu(a) b,   silu(a) = a / (1 + e^-a)
///
/// up    [rows, 2 width]: gate and value side by side;  bias  [2 width], or nullptr
/// y     [rows, width], out
///
/// Operands are of `element`; width is a multiple of kSwigluVector, pointers lie at multiples of 16
/// bytes. Moves 3 rows width elements.
struct Swiglu {
  const void* up = nullptr;
  const void* bias = nullptr;
  void* y = nullptr;
  std::int64_t rows = 0, width = 0;
  Element element = Element::bf16;
};

/// Backward, from g = dL/dy:
///
///   da = g b sigmoid(a) (1 + a (1 - sigmoid(a))),   db = g silu(a),   grad_bias += sum_rows
///
/// grad_up    [rows, 2 width], out; may be `up` itself
/// grad_bias  [2 width] float32, added to, or nullptr (then `partial` is unused)
/// partial    swiglu_workspace floats of scratch
///
/// Sums over rows are in a fixed order. Moves 5 rows width elements.
struct SwigluGrad {
  const void* grad = nullptr;
  const void* up = nullptr;
  const void* bias = nullptr;
  void* grad_up = nullptr;
  float* grad_bias = nullptr;
  float* partial = nullptr;
  std::int64_t rows = 0, width = 0;
  Element element = Element::bf16;
};

constexpr std::int64_t kSwigluVector = 8;
std::int64_t swiglu_workspace(std::int64_t rows, std::int64_t width);

void swiglu_cpu(const Swiglu& p, int threads);
void swiglu_cuda(const Swiglu& p, Stream stream);
void swiglu_grad_cpu(const SwigluGrad& p, int threads);
void swiglu_grad_cuda(const SwigluGrad& p, Stream stream);

}  // namespace subspace::kernels
