#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "lora/circuit_metrics.h"

namespace subspace {

/// Which coordinates of a side are the base's.
struct BaseSpan {
  at::Tensor mask;  ///< [1 | groups | H, f], 1 for those that are; of every head if scattered
  std::int64_t inside = 0;  ///< they are the first so many of every head; or kScattered

  static constexpr std::int64_t kScattered = -1;

  /// From a mask [1 | groups | H, f].
  BaseSpan(const Side& side, const at::Tensor& mask, std::int64_t heads);
  BaseSpan of_heads(std::int64_t begin, std::int64_t count) const;
  /// The rows of x [h, f, ..] within the base's span, in fewer rows or the others zero.
  at::Tensor within(const at::Tensor& x) const;
  at::Tensor outside(const at::Tensor& x) const;

 private:
  BaseSpan() = default;
};

/// Singular values of base, adapted and delta, intruders, rank and amplification of a circuit's
/// heads: those members of `out`. `still` is the circuit in coordinates at offset 0, on the CPU.
///
/// One task for a few heads, whose matrices are still in the cache when they are decomposed, by
/// kernels::SmallSvd: of U and V only the leading vectors of M' are formed, and the base's only as
/// products with those. About 2 ms a head at 144 x 144. Results do not depend on the number of
/// threads. Throws NotFinite (layer, circuit, head).
void find_spectra(const Circuit& still, const BaseSpan& left, const BaseSpan& right,
                  CircuitMetrics& out);

/// Principal angles of what heads share of each change, one task a matrix.
void find_angles(const Circuit& still, const BaseSpan& left, const BaseSpan& right,
                 CircuitMetrics& out);

/// sum Re lambda / sum |lambda| of each matrix, [H, k, k] on the CPU -> [H], NaN where one has a
/// NaN; one task for four of them, each of which gives the same bits by itself.
at::Tensor eigenvalue_ratio(const at::Tensor& matrices);

}  // namespace subspace
