#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace subspace::nn {

/// Where the kernels of src/kernels take the place of chains of PyTorch's operators: on the GPU
/// (the usual), nowhere (to see what they buy), everywhere (their CPU twins, for tests).
enum class Fuse { never, on_gpu, always };
void fuse(Fuse where);

/// Whether they do for a tensor: by its device, and its type, which must be float32 or bfloat16.
bool fused(const at::Tensor& x);

// The functions below are differentiable. A parameter whose gradient is already there as float32
// (train::Optimizer on a GPU) gets its share added to it, in float32 and without a tensor between;
// any other gets it from autograd as usual.

/// x W^T, x [.., in], weight [out, in].
at::Tensor fused_linear(const at::Tensor& x, const at::Tensor& weight);

/// Whether fused_norm and fused_add_norm take rows of x: width and alignment (kernels/rms_norm.h).
bool norm_fits(const at::Tensor& x);
/// RMSNorm over the last axis. x may be columns of wider rows.
at::Tensor fused_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
/// s = x + (delta + bias) and its RMSNorm; bias may be undefined.
std::tuple<at::Tensor, at::Tensor> fused_add_norm(const at::Tensor& x, const at::Tensor& delta,
                                                  const at::Tensor& bias, const at::Tensor& weight,
                                                  double eps);

/// silu(a) b with [a, b] = up + bias, up [.., 2 width]; bias may be undefined. width is a multiple
/// of 8.
at::Tensor fused_swiglu(const at::Tensor& up, const at::Tensor& bias);

/// factor * sum of -log softmax(rows W^T)[target] over the first `classes` rows of the weight;
/// rows [N, d], targets [N] (negative: none), factor a float32 scalar. Logits are made a part of
/// the rows at a time and never kept: what the backward pass needs of them is computed right away,
/// so the result must be what backward() starts from (or be added to that).
at::Tensor fused_loss(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& targets,
                      const at::Tensor& factor, std::int64_t classes);

/// Bytes of logits that fused_loss has at a time, about, and of those that it makes before their
/// loss is taken; to be measured with.
void set_logits_bytes(std::int64_t at_a_time, std::int64_t in_cache);

}  // namespace subspace::nn
