#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace subspace::ops {

// What the operators do below autograd: the same functions on CPU and CUDA, and their `_meta`
// twins, which check the same and give empty results. The contracts are in ops.h.

using at::Tensor;
using Tensors2 = std::tuple<Tensor, Tensor>;
using Tensors3 = std::tuple<Tensor, Tensor, Tensor>;
using Tensors4 = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Tensors2 topk(const Tensor& s1, const Tensor& s2, std::int64_t k, bool softmax);
Tensors2 topk_meta(const Tensor& s1, const Tensor& s2, std::int64_t k, bool softmax);
/// Of both sides, of `type`; grad is of the weights where those are given, of the scores otherwise.
Tensors2 topk_backward(const Tensor& grad, const Tensor& index,
                       const std::optional<Tensor>& weights, std::int64_t side,
                       at::ScalarType type);
Tensors2 topk_backward_meta(const Tensor& grad, const Tensor& index,
                            const std::optional<Tensor>& weights, c10::SymInt side,
                            at::ScalarType type);

Tensors2 moments(const Tensor& x);
Tensors2 moments_meta(const Tensor& x);
Tensors2 norm_halves(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean,
                     const Tensor& variance, std::int64_t heads, double eps, bool of_batch);
Tensors2 norm_halves_meta(const Tensor& x, const Tensor& weight, const Tensor& bias,
                          const Tensor& mean, const Tensor& variance, std::int64_t heads,
                          double eps, bool of_batch);
/// Of x, weight and bias.
Tensors3 norm_halves_backward(const Tensor& grad_first, const Tensor& grad_second, const Tensor& x,
                              const Tensor& weight, const Tensor& mean, const Tensor& variance,
                              double eps, bool of_batch);
Tensors3 norm_halves_backward_meta(const Tensor& grad_first, const Tensor& grad_second,
                                   const Tensor& x, const Tensor& weight, const Tensor& mean,
                                   const Tensor& variance, double eps, bool of_batch);

/// acc, p [T, S] float32, and the generated rows: pre = z W1, table = gelu(pre). Only with
/// `for_backward` are these the rows that ethos_backward wants.
Tensors4 ethos_forward(const Tensor& xp, const Tensor& scores, const Tensor& index, const Tensor& z,
                       const Tensor& w1, bool for_backward);
Tensors4 ethos_forward_meta(const Tensor& xp, const Tensor& scores, const Tensor& index,
                            const Tensor& z, const Tensor& w1, bool for_backward);
/// Of xp, scores, z and w1.
Tensors4 ethos_backward(const Tensor& grad, const Tensor& xp, const Tensor& scores,
                        const Tensor& index, const Tensor& z, const Tensor& w1, const Tensor& p,
                        const Tensor& pre, const Tensor& table);
Tensors4 ethos_backward_meta(const Tensor& grad, const Tensor& xp, const Tensor& scores,
                             const Tensor& index, const Tensor& z, const Tensor& w1,
                             const Tensor& p, const Tensor& pre, const Tensor& table);

/// y, p [T, S] float32.
Tensors2 stored_forward(const Tensor& x, const Tensor& scores, const Tensor& index,
                        const Tensor& down, const Tensor& up);
Tensors2 stored_forward_meta(const Tensor& x, const Tensor& scores, const Tensor& index,
                             const Tensor& down, const Tensor& up);
/// Of x, scores, down and up.
Tensors4 stored_backward(const Tensor& grad, const Tensor& x, const Tensor& scores,
                         const Tensor& index, const Tensor& down, const Tensor& up,
                         const Tensor& p);
Tensors4 stored_backward_meta(const Tensor& grad, const Tensor& x, const Tensor& scores,
                              const Tensor& index, const Tensor& down, const Tensor& up,
                              const Tensor& p);

}  // namespace subspace::ops
