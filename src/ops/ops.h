#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

namespace subspace::ops {

// The operators of torch.ops.subspace, for C++. Each goes through PyTorch's dispatcher: CPU and
// CUDA, shapes alone (Meta), autograd, autocast. T tokens, H heads, S = H k selections, N experts,
// gelu the exact one.
//
// Common to all. Floating arguments are float32 or bfloat16, all of an operator alike; scores may
// be either, and are used as float32; what belongs to a norm is float32. Any strides; what is not
// contiguous is copied. Sums are float32 and their order depends on shapes and indices alone: the
// same bits each run. Nothing waits for the device and no size depends on values, so CUDA graphs
// can record them. Gradients flow to every floating argument, once (no second derivatives), in the
// argument's type.
//
// Errors: ValueError for a shape or device, TypeError for a type, IndexError for an expert outside
// [0, N) on the CPU. On the GPU such an expert makes its token NaN instead, since raising an error
// would have to wait for the device. Under autocast the tables and vectors become bfloat16, or
// float32 where autocast's type is another.

/// The k best of the n^2 sums of two sides.
///
///   (a, b) among the k best of s1[t, h, a] + s2[t, h, b];  index = a n + b
///
/// s1, s2 [T, H, n] -> scores [T, H, k] float32, descending, ties smaller index first; with
/// `softmax` the softmax of these; index [T, H, k] int64. 1 <= k <= 64, k <= n <= 32768. A NaN in a
/// row shows as its first score. Cost: one reading of s1 and s2. kernels/product_key_topk.h has the
/// rule in full.
std::tuple<at::Tensor, at::Tensor> product_key_topk(const at::Tensor& s1, const at::Tensor& s2,
                                                    std::int64_t k, bool softmax = false);

/// Mean and variance (divided by T) of every column of x [T, C], each [C] float32.
///
/// One reading of x; kernels/batch_norm.h has the sums' order. No gradients: batch_norm_halves
/// accounts for them.
std::tuple<at::Tensor, at::Tensor> column_moments(const at::Tensor& x);

/// Batch normalisation of the queries of product keys, whose two sides come out apart.
///
///   y = (x - mean) / sqrt(variance + eps) weight + bias, then [T, H, 2, q/2] -> 2 x [T, H, q/2]
///
/// x [T, H q], q even; weight, bias, mean, variance [H q] float32. `of_batch`: mean and variance
/// are x's own (column_moments), and x's gradient goes through them; otherwise they are numbers.
/// One reading of x and one writing of y; backward two readings of both and one writing.
std::tuple<at::Tensor, at::Tensor> batch_norm_halves(const at::Tensor& x, const at::Tensor& weight,
                                                     const at::Tensor& bias, const at::Tensor& mean,
                                                     const at::Tensor& variance, std::int64_t heads,
                                                     double eps, bool of_batch);

/// The reordered ETHOS layer between its projections.
///
///   h_e = gelu(z_e W1),   acc = sum_j gelu(h_e(j) . xp) s_j h_e(j)
///
/// xp [T, d_h], scores, index [T, S], z [N, d_l], w1 [d_l, d_h] -> acc [T, d_h]; d_h is a multiple
/// of 32 up to 1024, T S and N are below 2^31. The hidden vectors of all experts are generated once
/// a call, or, where the selections are less than a quarter of N, those of the chosen ones. Keeps
/// for the backward pass z W1 and h (two tables of N d_h) and one float a selection.
at::Tensor ethos_experts(const at::Tensor& xp, const at::Tensor& scores, const at::Tensor& index,
                         const at::Tensor& z, const at::Tensor& w1);

/// The layer: y = ethos_experts(x W_u, ...) W_v / heads.
///
/// x [T, d], w_u [d, d_h], w_v [d_h, d] -> y [T, d]; the rest as above. The division is W_v's: it
/// is the smallest operand, and exact where heads is a power of two.
at::Tensor ethos_layer(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& index,
                       const at::Tensor& z, const at::Tensor& w1, const at::Tensor& w_u,
                       const at::Tensor& w_v, std::int64_t heads);

/// Stored single-neuron experts (PEER): y = sum_j gelu(down_e(j) . x) s_j up_e(j).
///
/// x [T, d], scores, index [T, S], down, up [N, d] -> y [T, d]; d is a multiple of 32 up to 4096, S
/// at most 4096.
at::Tensor stored_experts(const at::Tensor& x, const at::Tensor& scores, const at::Tensor& index,
                          const at::Tensor& down, const at::Tensor& up);

}  // namespace subspace::ops
