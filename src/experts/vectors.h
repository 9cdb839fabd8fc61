#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "nn/model.h"

namespace subspace::experts {

/// The tensors of one layer of single-neuron experts, float64, on the model's device; those that
/// its kind does not have are undefined. Row vectors, as in nn/neuron_experts.h.
struct ExpertTensors {
  nn::NeuronExpertsConfig config;
  at::Tensor z, w1;     ///< ethos: latents [N, d_l], W1 [d_l, d_h]
  at::Tensor down, up;  ///< peer, molae: what is read and written, [N, width]
  at::Tensor w_u, w_v;  ///< ethos, molae: [d, inner], [inner, d]
  at::Tensor keys[2];   ///< [n, query / 2]

  /// What tells one expert from another: its latent, or the vector it reads with.
  const at::Tensor& latents() const { return z.defined() ? z : down; }
  /// The vector that an input is compared with, of experts with such latents: h = gelu(z W1), or
  /// the stored one itself.
  at::Tensor read(const at::Tensor& latents) const;
};

/// Throws Unsupported if the layer has none (a mixture, a dense one).
ExpertTensors expert_tensors(const nn::Model& model, std::int64_t layer);

/// Calls `work` with the rows of a table, some at a time, and the first one's number.
void by_pieces(const at::Tensor& table,
               const std::function<void(std::int64_t, const at::Tensor&)>& work);

/// Mean and covariance of rows, and a factor of the latter: what a twin is drawn from.
struct Gaussian {
  at::Tensor mean;    ///< [1, w]
  at::Tensor factor;  ///< [w, w], factor factor^T the covariance
  explicit Gaussian(const at::Tensor& rows);
  /// Rows of the same mean and covariance and no other structure; the same again for a seed.
  at::Tensor draw(std::int64_t rows, std::uint64_t seed) const;
};

/// `count` of the numbers 0 .. n - 1, each equally likely and no one twice, in random order, by
/// seed. [count] int64 on the CPU.
at::Tensor shuffled(std::int64_t n, std::int64_t count, std::uint64_t seed);

/// The values of a tensor as a list, whatever its type, device and layout.
std::vector<double> doubles_of(const at::Tensor& values);
std::vector<std::int64_t> integers_of(const at::Tensor& values);

/// Up to `most` of `experts` numbers, rising, each equally likely; the same for every call. int64.
at::Tensor sampled(std::int64_t experts, std::int64_t most, const at::Tensor& like);

}  // namespace subspace::experts
