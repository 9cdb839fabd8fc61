#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "nn/config.h"
#include "nn/parameters.h"

namespace subspace::nn {

/// y = x W^T + b, weight [out, in] as checkpoints store it; bias undefined if there is none.
/// With an adapter y += s (x A^T) B^T on the rows of each matrix that it is on.
struct Linear {
  struct Adapter {
    std::int64_t begin = 0;
    LowRankRows change;
  };
  at::Tensor weight, bias;
  std::vector<Adapter> adapters;
  at::Tensor operator()(const at::Tensor& x) const;
  /// x W^T, where the bias is added by what comes next.
  at::Tensor without_bias(const at::Tensor& x) const;

 private:
  at::Tensor adapted(const at::Tensor& x, const at::Tensor& y) const;
};

/// Several projections of one vector as one product. Names without ".weight".
struct Rows {
  std::string name;
  std::int64_t rows;
};
Linear joined_linear(Parameters& parameters, const std::vector<Rows>& parts, std::int64_t in,
                     bool bias);
Linear linear(Parameters& parameters, const std::string& name, std::int64_t out, std::int64_t in,
              bool bias);

/// The vectors that blocks add to, with what the last part wants added: x + (delta + bias). It is
/// left to the norm that reads the sum next.
struct Residual {
  at::Tensor x, delta, bias;
  at::Tensor sum() const;
};

/// Rows [1, P, d] of the vectors x [B, T, d] in order of `rows` [P]; x itself if that is undefined.
at::Tensor chosen_rows(const at::Tensor& x, const at::Tensor& rows);

/// RMSNorm  x / sqrt(mean(x^2) + eps) * w,  or LayerNorm  (x - mean) / sqrt(var + eps) * w + b,
/// over the last axis.
struct NormLayer {
  at::Tensor weight, bias;
  double eps = 0;
  at::Tensor operator()(const at::Tensor& x) const;
  /// Of the sum, which takes the place of its terms.
  at::Tensor operator()(Residual& residual) const;
};
/// RMSNorm, or LayerNorm with `layer`. `name` without ".weight".
NormLayer norm_layer(Parameters& parameters, const std::string& name, std::int64_t width,
                     double eps, bool layer);

/// Cosines and sines of every position up to the longest sequence, [positions, dims / 2].
///
/// Heads are rotated as Rotary says (attention/layer.h). The interleaved layout comes back with
/// its pairs taken apart, first elements before second: a permutation that queries and keys share,
/// which no product of the two can see.
class RotaryTable {
 public:
  RotaryTable() = default;
  RotaryTable(const Rotary& rotary, std::int64_t positions, const at::TensorOptions& options);

  /// The rows of positions 0 .. tokens - 1, or of `positions` [B, T].
  RotaryTable at_positions(std::int64_t tokens, const at::Tensor& positions) const;
  /// x [B, T, heads, width] with its rotary part (columns begin .. begin + dims) turned.
  at::Tensor rotate(const at::Tensor& x) const;

  Rotary::Layout layout() const { return layout_; }
  std::int64_t begin() const { return begin_; }
  std::int64_t dims() const { return dims_; }
  /// [T, 1, dims / 2], or [B, T, 1, dims / 2] where positions were given.
  const at::Tensor& cos() const { return cos_; }
  const at::Tensor& sin() const { return sin_; }
  bool of_positions() const { return cos_.defined() && cos_.dim() == 4; }

 private:
  Rotary::Layout layout_ = Rotary::Layout::none;
  std::int64_t begin_ = 0, dims_ = 0;
  at::Tensor cos_, sin_;
};

}  // namespace subspace::nn
