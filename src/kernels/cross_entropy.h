#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/element.h"

namespace subspace::kernels {

/// Loss of a row of logits, and its gradient in their place:
///
///   loss = log sum_c exp(x_c) - x_t,   x_c <- factor (exp(x_c) / sum exp - [c = t])
///
/// logits   [rows, columns], rows `stride` apart, in and out; the columns behind them up to
///          `stride` (a padded vocabulary) count as no class: their gradient is zero
/// targets  [rows]; below zero: no target, loss and gradient are zero
/// factor   one float where the logits are, read when the kernel runs, or nullptr: the logits stay
/// loss     [rows] float32, out
///
/// logits are of `element`; stride is a multiple of kCrossEntropyVector, logits at a multiple of 16
/// bytes. Sums are float32. A target at or above `columns` makes its row's loss NaN. Reads and
/// writes each logit once (rows that shared memory holds, some 200 KB; longer ones are read twice).
struct CrossEntropy {
  void* logits = nullptr;
  const std::int64_t* targets = nullptr;
  const float* factor = nullptr;
  float* loss = nullptr;
  std::int64_t rows = 0, columns = 0, stride = 0;
  Element element = Element::bf16;
};

constexpr std::int64_t kCrossEntropyVector = 8;

void cross_entropy_cpu(const CrossEntropy& p, int threads);
void cross_entropy_cuda(const CrossEntropy& p, Stream stream);

}  // namespace subspace::kernels
