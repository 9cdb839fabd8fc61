#pragma once

#include <cstdint>
#include <vector>

namespace subspace::kernels {

// The kernels of a training step in plain loops and double precision: what every fast version is
// compared with. They share no code with those and allocate. Arrays are rows behind one another.

using Reals = std::vector<double>;

/// RmsNorm; delta and bias may be empty.
struct RmsNormResult {
  Reals sum, y, scale;
};
RmsNormResult rms_norm_reference(const Reals& x, const Reals& delta, const Reals& bias,
                                 const Reals& weight, double eps);
/// RmsNormGrad; grad_sum may be empty.
struct RmsNormGradResult {
  Reals grad_s, weight, bias;
};
RmsNormGradResult rms_norm_grad_reference(const Reals& grad, const Reals& grad_sum, const Reals& s,
                                          const Reals& weight, double eps);

/// ColumnMoments of x [rows, width].
struct MomentsResult {
  Reals mean, variance;
};
MomentsResult column_moments_reference(const Reals& x, std::int64_t width);
/// BatchNormHalves and BatchNormHalvesGrad before they take sides apart: y, grad and grad_x are
/// [rows, width].
struct BatchNormResult {
  Reals y, grad_x, weight, bias;
};
BatchNormResult batch_norm_reference(const Reals& x, const MomentsResult& moments,
                                     const Reals& weight, const Reals& bias, const Reals& grad,
                                     double eps, bool of_batch);

/// Swiglu and SwigluGrad; bias [2 width].
Reals swiglu_reference(const Reals& up, const Reals& bias);
struct SwigluGradResult {
  Reals up, bias;
};
SwigluGradResult swiglu_grad_reference(const Reals& grad, const Reals& up, const Reals& bias);

/// A head of `width` coordinates turned as RotaryHeads says; cos, sin [dims / 2]. The transpose of
/// the turn for gradients: `back`.
Reals turned_reference(const Reals& head, const Reals& cos, const Reals& sin, std::int64_t begin,
                       bool interleaved, bool back);

/// One head of ShortAttention: q, k, v and grad [length, width]. p: the softmax, slope: dS.
struct AttentionResult {
  Reals p, out, lse, slope, q, k, v;
};
AttentionResult attention_reference(const Reals& q, const Reals& k, const Reals& v,
                                    const Reals& grad, std::int64_t length, double scale,
                                    bool causal);

/// CrossEntropy with `columns` classes in rows of `stride`.
struct CrossEntropyResult {
  Reals loss, gradient;
};
CrossEntropyResult cross_entropy_reference(const Reals& logits,
                                           const std::vector<std::int64_t>& targets,
                                           std::int64_t columns, std::int64_t stride,
                                           double factor);

}  // namespace subspace::kernels
