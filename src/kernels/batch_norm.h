#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/column_sums.h"
#include "kernels/device.h"
#include "kernels/element.h"

namespace subspace::kernels {

/// Mean and variance of every column of x [rows, width]:
///
///   mean_c = sum_t x_tc / rows,   variance_c = sum_t (x_tc - mean_c)^2 / rows
///
/// mean, variance  [width] float32, out; NaN without rows
/// partial         column_moments_workspace floats of scratch
///
/// Pieces of the rows, at places that depend on the shape alone, are summed as differences from
/// their first row and put together in order, in double (Chan, Golub and LeVeque 1983): the same
/// bits every time, and no loss where a mean is far larger than the spread. One reading of x.
/// Values whose squared differences are beyond float32 give NaN or infinity.
struct ColumnMoments {
  const void* x = nullptr;
  float* mean = nullptr;
  float* variance = nullptr;
  float* partial = nullptr;
  std::int64_t rows = 0, width = 0;
  Element element = Element::bf16;
};

/// Batch normalisation (Ioffe and Szegedy 2015) of the queries of product keys, which come out
/// taken apart: for head h, side 0 or 1 and its column c, with everything [heads, 2, half]
///
///   y_thsc = (x_thsc - mean_hsc) / sqrt(variance_hsc + eps) weight_hsc + bias_hsc
///
/// x                           [rows, heads, 2, half]
/// mean, variance, weight, bias  [heads, 2, half] float32
/// first, second               [rows, heads, half], out: sides 0 and 1 of y
///
/// Moves each value once: one reading of x, one writing of y.
struct BatchNormHalves {
  const void* x = nullptr;
  const float* mean = nullptr;
  const float* variance = nullptr;
  const float* weight = nullptr;
  const float* bias = nullptr;
  void* first = nullptr;
  void* second = nullptr;
  std::int64_t rows = 0, heads = 0, half = 0;
  double eps = 0;
  Element element = Element::bf16;

  std::int64_t width() const { return heads * 2 * half; }
};

/// Backward, with g the gradient of y, n = (x - mean) r and r = 1 / sqrt(variance + eps):
///
///   grad_bias = sum_t g,   grad_weight = sum_t g n
///   grad_x = weight r (g - (grad_bias + n grad_weight) / rows)   if mean and variance are x's own
///   grad_x = weight r g                                          if they are given numbers
///
/// forward                  of which first, second and bias are not used
/// of_batch                 which of the two
/// grad_first, grad_second  [rows, heads, half]
/// grad_x                   [rows, heads, 2, half], out
/// grad_weight, grad_bias   [heads, 2, half] float32, out
/// partial                  column_moments_workspace floats of scratch
///
/// Two readings of x and g, one writing of grad_x; sums over rows as above.
struct BatchNormHalvesGrad {
  BatchNormHalves forward;
  bool of_batch = true;
  const void* grad_first = nullptr;
  const void* grad_second = nullptr;
  void* grad_x = nullptr;
  float* grad_weight = nullptr;
  float* grad_bias = nullptr;
  float* partial = nullptr;
};

/// Runs of rows whose sums are made apart: of 64 rows or more, at most one for each multiprocessor
/// of the GPU that this was tuned on.
inline RowPieces batch_norm_pieces(std::int64_t rows) {
  return row_pieces(rows, std::clamp<std::int64_t>(rows / 64, 1, 132));
}

std::int64_t column_moments_workspace(std::int64_t rows, std::int64_t width);

void column_moments_cpu(const ColumnMoments& p, int threads);
void column_moments_cuda(const ColumnMoments& p, Stream stream);
void batch_norm_halves_cpu(const BatchNormHalves& p, int threads);
void batch_norm_halves_cuda(const BatchNormHalves& p, Stream stream);
void batch_norm_halves_grad_cpu(const BatchNormHalvesGrad& p, int threads);
void batch_norm_halves_grad_cuda(const BatchNormHalvesGrad& p, Stream stream);

}  // namespace subspace::kernels
