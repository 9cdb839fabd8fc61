#pragma once

#include <ATen/core/Tensor.h>

#include "nn/parameters.h"
#include "train/settings.h"

namespace subspace::train {

/// AdamW with decoupled weight decay (Loshchilov and Hutter 2019), by PyTorch's fused kernel:
///
///   m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  w -= lr (decay w + mh / (sqrt(vh) + eps))
///
/// with mh, vh corrected for their beginning at zero. Norms and biases do not decay. State and
/// weights are float32 at least: a bfloat16 model gets a float32 master copy of its weights and
/// gradients summed in float32. Nothing here waits for the device.
///
/// On a GPU the step is the kernel of kernels/adamw.h instead, and the parameters' gradients are
/// the float32 sums themselves: a backward pass adds to them.
class Optimizer {
 public:
  Optimizer(const nn::Parameters& parameters, const Settings& settings);
  /// `fused`: by the kernel, wherever the parameters are (float32 or bfloat16).
  Optimizer(const nn::Parameters& parameters, const Settings& settings, bool fused);

  /// Adds the parameters' gradients to the sums of this step and clears them; called once a
  /// backward pass.
  void collect();
  /// Norm of the summed gradients, clipping, and one step. A step whose gradient is not finite
  /// changes nothing. Returns the norm before clipping, a scalar on the device.
  at::Tensor step(double learning_rate);
  /// The same with the rate in a float32 scalar on the device, read when the step is computed.
  at::Tensor step(const at::Tensor& learning_rate);

  /// "exp_avg.<name>" and so on, as checkpoints keep them.
  std::vector<std::pair<std::string, at::Tensor>> state() const;
  /// Throws NotFound, InvalidShape as the file says.
  void load(const SafetensorsFile& file);

 private:
  /// Parameters with one weight decay.
  struct Group {
    double decay = 0;
    std::vector<at::Tensor> values, masters, gradients, means, squares, steps;
    std::vector<std::string> names;
  };
  void make_runs();
  at::Tensor fused_step(const at::Tensor& learning_rate);

  Settings settings_;
  Group groups_[2];
  bool fused_;
  std::int64_t runs_count_ = 0;
  at::Tensor runs_, state_, partial_;  // of the kernel
};

}  // namespace subspace::train
