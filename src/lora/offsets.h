#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/layer.h"

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
/// mean.
class Offsets {
 public:
  /// For heads of width k and a list of offsets, query position - key position. A rotary of layout
  /// none turns nothing: every offset is 0. O(k^2 offsets) time and memory.
  Offsets(const Rotary& rotary, std::int64_t k, std::vector<std::int64_t> offsets,
          const at::Device& device);

  const std::vector<std::int64_t>& list() const { return offsets_; }
  std::int64_t planes() const { return planes_; }

  /// Gram matrices [.., k, k] as vectors [.., k^2] such that <vectors(G), vectors(G')> is the sum
  /// of G o G'.
  at::Tensor vectors(const at::Tensor& gram) const;

  /// vectors(mean over the offsets of R G R^T) from vectors(G).
  at::Tensor mean_rotated(const at::Tensor& vectors) const;

  /// sum of G_X o (R(delta) G_Y R(delta)^T) at each offset, from the vectors of both: [..,
  /// offsets].
  at::Tensor at_each(const at::Tensor& x, const at::Tensor& y) const;

  /// Its mean over all offsets there are, 1/2 sum_f |X_f|^2 |Y_f|^2, plane by plane, and last what
  /// the unrotated coordinates give: [.., planes + 1].
  at::Tensor by_frequency(const at::Tensor& x, const at::Tensor& y) const;

 private:
  /// How many numbers of a vector turn, as pairs of a real and an imaginary part.
  std::int64_t complex_count() const { return 2 * planes_ * planes_ + 2 * planes_ * rest_; }

  std::int64_t planes_ = 0, rest_ = 0;
  double scale_ = 1;
  std::vector<std::int64_t> offsets_;
  at::Tensor first_, second_, others_;  // coordinates of the planes' two sides; unrotated ones
  at::Tensor cos_, sin_;                // [complex_count, offsets], YaRN's factor included
  at::Tensor mean_cos_, mean_sin_;      // [complex_count]
};

}  // namespace subspace
