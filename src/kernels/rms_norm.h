#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/element.h"

namespace subspace::kernels {

/// A residual sum and the RMSNorm that reads it, rows of `width`:
///
///   s = x + (delta + bias),   y = r s w,   r = 1 / sqrt(mean(s^2) + eps)
///
/// x       [rows, width], rows `x_stride` apart
/// delta   [rows, width] or nullptr: then s is x and nothing is added
/// bias    [width], of the product that made delta, or nullptr
/// weight  [width]
/// sum     [rows, width], out: s, rounded as stored before the norm reads it; unused without delta
/// y       [rows, width], out
/// scale   [rows], out: r
///
/// Every operand but `scale` is of `element`; strides and width are in elements and multiples of
/// kRmsNormVector; pointers lie at multiples of 16 bytes; width at most kRmsNormWidth. Moves each
/// row once: rows width elements read (twice with delta) and written (likewise).
struct RmsNorm {
  const void* x = nullptr;
  const void* delta = nullptr;
  const void* bias = nullptr;
  const void* weight = nullptr;
  void* sum = nullptr;
  void* y = nullptr;
  float* scale = nullptr;
  std::int64_t rows = 0, width = 0, x_stride = 0;
  double eps = 0;
  Element element = Element::bf16;
};

/// Backward, from g = dL/dy and, where s is used elsewhere too, e = dL/ds from there:
///
///   grad_s = e + r (g w - s r^2 mean(g w s)),  which is dL/dx and dL/ddelta
///   grad_weight += sum_rows g s r,   grad_bias += sum_rows grad_s
///
/// grad     [rows, width];  grad_sum  e, or nullptr
/// s        what the norm read, rows `s_stride` apart;  scale  r of the forward pass
/// grad_s   [rows, width], rows `grad_stride` apart, out
/// grad_weight, grad_bias   [width] float32, added to; grad_bias may be nullptr
/// partial  rms_norm_workspace floats of scratch
///
/// Sums over rows are made in pieces at fixed places and added in order: the same bits every time.
struct RmsNormGrad {
  const void* grad = nullptr;
  const void* grad_sum = nullptr;
  const void* s = nullptr;
  const void* weight = nullptr;
  const float* scale = nullptr;
  void* grad_s = nullptr;
  float* grad_weight = nullptr;
  float* grad_bias = nullptr;
  float* partial = nullptr;
  std::int64_t rows = 0, width = 0, s_stride = 0, grad_stride = 0;
  Element element = Element::bf16;
};

constexpr std::int64_t kRmsNormVector = 8;
/// Widest rows, of either element.
constexpr std::int64_t kRmsNormWidth = 2048;

std::int64_t rms_norm_workspace(std::int64_t rows, std::int64_t width);

void rms_norm_cpu(const RmsNorm& p, int threads);
void rms_norm_cuda(const RmsNorm& p, Stream stream);
void rms_norm_grad_cpu(const RmsNormGrad& p, int threads);
void rms_norm_grad_cuda(const RmsNormGrad& p, Stream stream);

}  // namespace subspace::kernels
