#pragma once

#include <array>

#include "nn/expert_functions.h"
#include "nn/layers.h"
#include "nn/neuron_config.h"

namespace subspace::nn {

/// The queries of all heads, taken apart: their first and second halves, [T, H, query / 2].
using Halves = std::array<at::Tensor, 2>;

/// Batch normalisation of the queries x [T, H query] of one pass (Ioffe and Szegedy 2015):
///
///   y = (x - mean) / sqrt(var + 1e-5) * w + b
///
/// training: mean and variance over the T rows, and running estimates of both move a tenth of the
/// way to them (the variance's unbiased); otherwise those estimates. They are buffers of the
/// checkpoint, written in place, so that a recorded pass moves them too.
struct BatchNorm {
  at::Tensor weight, bias, mean, variance;
  Halves operator()(const at::Tensor& x, std::int64_t heads, bool training) const;
};
BatchNorm batch_norm(Parameters& parameters, const std::string& name, std::int64_t width);

/// Chooses experts by product keys (Lample et al. 2019; He 2024, section 2): for each of H heads
///
///   q = norm(x Wq + b), in halves q1, q2;  s1 = q1 K1^T, s2 = q2 K2^T
///   the k largest of the n^2 sums s1[a] + s2[b];  expert a n + b;  softmax over these k
///
/// norm is BatchNorm or nothing. Keys K1, K2 [n, query / 2] serve all heads. They begin with
/// variance 2 / query, so that a normalised query scores with variance 1 on each side.
/// Tensors: query.{weight, bias}, query_norm.{weight, bias, running_mean, running_var},
/// keys.{0, 1}.weight.
class ProductKeyRouter {
 public:
  ProductKeyRouter(Parameters& parameters, const NeuronExpertsConfig& config, std::int64_t width,
                   const std::string& base);
  /// x [T, d].
  Selections operator()(const at::Tensor& x, bool training) const;

 private:
  std::int64_t heads_, per_head_;
  Linear query_, keys_[2];
  std::optional<BatchNorm> norm_;
};

}  // namespace subspace::nn
