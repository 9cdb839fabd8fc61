#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/element.h"

namespace subspace::kernels {

/// A run of one trained tensor: at most kAdamwRun numbers that lie behind one another.
struct AdamwRun {
  float* master = nullptr;
  float* gradient = nullptr;  ///< in: the sum of a step; out: zero
  float* mean = nullptr;
  float* square = nullptr;
  void* value = nullptr;  ///< `element`, the copy that the model computes with; nullptr: none
  std::int64_t count = 0;
  float decay = 0;
};
constexpr std::int64_t kAdamwRun = 4096;

/// What a step finds out, on the device.
struct AdamwState {
  float norm = 0;    ///< of all gradients, before clipping
  float steps = 0;   ///< that changed something so far
  float clip = 0;    ///< factor on the gradients
  float rate = 0;    ///< learning rate / (1 - beta1^steps)
  float root = 0;    ///< 1 / sqrt(1 - beta2^steps)
  float decays = 0;  ///< learning rate, as the decay has it
  float skipped = 0;
  float unused = 0;
};

/// One step of AdamW (Loshchilov and Hutter 2019) over all tensors of a model, with clipping:
///
///   norm = sqrt(sum g^2),  g *= min(1, max_norm / (norm + 1e-6))     (max_norm 0: not at all)
///   m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
///   w -= lr decay w,  w -= lr mh / (sqrt(vh) + eps)        mh, vh: corrected for m = v = 0 at
///   first
///
/// and then g = 0. A norm that is not finite changes nothing but the gradients: they become zero.
///
/// runs           on the device, as are all they point to
/// learning_rate  one float on the device, so that a captured step follows its schedule
/// state          on the device; `steps` is read, everything written
/// partial        `count` doubles of scratch
///
/// The sum of squares is double and in a fixed order: the same bits every time. Moves 32 bytes a
/// number on the device with a bfloat16 copy (g twice, m, v and w once each way).
struct Adamw {
  const AdamwRun* runs = nullptr;
  std::int64_t count = 0;  ///< of runs
  const float* learning_rate = nullptr;
  AdamwState* state = nullptr;
  double* partial = nullptr;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, max_norm = 0;
  Element element = Element::bf16;
};

void adamw_cpu(const Adamw& p, int threads);
void adamw_cuda(const Adamw& p, Stream stream);

/// What follows from the norm and the number of steps, for one step.
AdamwState adamw_state(const Adamw& p, double square, float steps, float learning_rate);

}  // namespace subspace::kernels
