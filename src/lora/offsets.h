#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/layer.h"
#include "kernels/turned_grams.h"

namespace subspace {

/// Inner products of M(delta) = X R(delta) Y^T over many offsets at the cost of one.
///
///   <X R Y^T, X' R Y'^T> = sum (X^T X') o (R (Y^T Y') R^T)
///
/// A k x k Gram matrix is cut into the blocks [[a, b], [c, d]] of its pairs (f, g) of rotary
/// planes. Each is z + w K with z = ((a + d) + i (b - c)) / 2, w = ((a - d) - i (b + c)) / 2, and
/// R.R^T multiplies z by exp(i delta (theta_f - theta_g)) and w by exp(i delta (theta_f +
/// theta_g)); a block of a plane and an unrotated coordinate turns by theta_f, one of two unrotated
/// ones stays. So an inner product is a sum of k^2 cosines and sines, the same for all heads, and
/// its mean over any set of offsets is the inner product with every cosine and sine replaced by its
/// mean. kernels::turned_grams does the sums.
class Offsets {
 public:
  /// For heads of width k: means over the offsets of `window`, and what is at each of `curve`,
  /// query position - key position. A rotary of layout none turns nothing: every offset is 0.
  /// Cosines of sums and differences are products of planes' own: planes^2 (window + curve)
  /// operations, k^2 curve numbers.
  Offsets(const Rotary& rotary, std::int64_t k, const std::vector<std::int64_t>& window,
          const std::vector<std::int64_t>& curve);

  /// Coordinates in the order that the tables are in; empty: as they stand.
  const std::vector<std::int64_t>& order() const { return order_; }
  /// x with its columns in that order.
  at::Tensor ordered(const at::Tensor& x) const;

  kernels::TurnTables tables() const;

 private:
  using Numbers = std::vector<double>;
  struct Planes;
  void fill(const Planes& of, double* cosines, double* sines) const;

  std::int64_t planes_ = 0, rest_ = 0, curve_ = 0;
  double scale_ = 1;  ///< YaRN's factor squared: one on each side
  std::vector<std::int64_t> order_;
  Numbers cos_, sin_, mean_cos_, mean_sin_;
};

}  // namespace subspace
