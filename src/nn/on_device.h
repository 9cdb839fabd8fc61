#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/expert_counts.h"
#include "kernels/rms_norm.h"
#include "kernels/rotary_heads.h"
#include "kernels/short_attention.h"
#include "kernels/swiglu.h"

namespace subspace::nn {

/// The kernel of that name on the device of `where`, on its current stream or PyTorch's number of
/// threads.
void run(const at::Tensor& where, const kernels::Adamw& p);
void run(const at::Tensor& where, const kernels::CrossEntropy& p);
void run(const at::Tensor& where, const kernels::ExpertCounts& p);
void run(const at::Tensor& where, const kernels::RmsNorm& p);
void run(const at::Tensor& where, const kernels::RmsNormGrad& p);
void run(const at::Tensor& where, const kernels::RotaryHeads& p);
void run(const at::Tensor& where, const kernels::RotaryHeadsGrad& p);
void run(const at::Tensor& where, const kernels::ShortAttention& p);
void run(const at::Tensor& where, const kernels::ShortAttentionGrad& p);
void run(const at::Tensor& where, const kernels::Swiglu& p);
void run(const at::Tensor& where, const kernels::SwigluGrad& p);

/// Whether the device of `x` has grouped products of its type that do not wait for the host.
bool has_grouped_products(const at::Tensor& x);

}  // namespace subspace::nn
