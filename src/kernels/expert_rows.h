#pragma once

#include <cstdint>

#include "kernels/dequantize.h"
#include "kernels/element.h"

namespace subspace::kernels {

/// The inner loops of the expert kernels on the CPU, one set for each storage and instruction set.
/// `row` holds `n` elements, everything else float32; sums run in an order that depends on n alone.
struct RowOps {
  /// sum_i row[i] x[i]
  float (*dot)(const void* row, const float* x, std::int64_t n);
  /// y += weight row
  void (*add)(const void* row, float weight, float* y, std::int64_t n);
  /// y[i] = row[i]
  void (*widen)(const void* row, float* y, std::int64_t n);
  /// row[i] = y[i], rounded to nearest even
  void (*narrow)(const float* y, void* row, std::int64_t n);
};

/// `isa` must be available.
const RowOps& row_ops(Element element, Isa isa);

RowOps row_ops_avx2(Element element);

}  // namespace subspace::kernels
