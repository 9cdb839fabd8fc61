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
class Optimizer {
 public:
  Optimizer(const nn::Parameters& parameters, const Settings& settings);

  /// Adds the parameters' gradients to the sums of this step and clears them; called once a
  /// backward pass.
  void collect();
  /// Norm of the summed gradients, clipping, and one step. A step whose gradient is not finite
  /// changes nothing. Returns the norm before clipping, a scalar on the device.
  at::Tensor step(double learning_rate);

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
  Settings settings_;
  Group groups_[2];
};

}  // namespace subspace::train
