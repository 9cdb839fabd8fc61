#pragma once

#include <vector>

#include "attention/layer.h"

namespace subspace {

/// The mean of a Gram matrix over the offsets of a rotary embedding, without a loop over offsets.
///
///   key side    mean_delta R(delta) G R(delta)^T,  G = K^T K:  ||X Q R K^T||^2 averaged
///   query side  mean_delta R(delta)^T G R(delta),  G = Q^T Q:  ||X K R^T Q^T||^2 averaged
///
/// so that tr(N mean N^T) is the mean over offsets of ||N R K^T||^2, exactly. Coordinate pairs as
/// complex numbers make a rotation a factor e^{i delta theta}, and of a block of two pairs (f, g)
/// one half turns with theta_f + theta_g and the other with theta_f - theta_g; what is averaged is
/// those factors, once for a model. Coordinates that are not rotated have theta = 0.
class RopeMean {
 public:
  /// `width`: of a head. Throws InvalidValue if `offsets` is empty.
  RopeMean(const Rotary& rotary, std::int64_t width, const std::vector<std::int64_t>& offsets);

  /// gram [.., k, k], symmetric or not (a block of a larger Gram matrix) -> the same shape.
  at::Tensor key_side(const at::Tensor& gram) const { return turned(gram, 1); }
  at::Tensor query_side(const at::Tensor& gram) const { return turned(gram, -1); }
  /// False if there is nothing to turn: no rotary embedding, or offset 0 alone.
  bool turns() const { return turns_; }

 private:
  at::Tensor turned(const at::Tensor& gram, double sign) const;

  std::int64_t width_;
  bool turns_ = false;
  at::Tensor order_, back_;  // coordinates with the pairs' first elements before their second
  at::Tensor cos_sum_, sin_sum_, cos_difference_, sin_difference_;  // [pairs, pairs]
  at::Tensor scale_;                                                // [k], in pair order
};

}  // namespace subspace
