#pragma once

#include <cmath>

#ifdef __CUDACC__
#define SUBSPACE_DEVICE __host__ __device__
#else
#define SUBSPACE_DEVICE
#endif

namespace subspace::kernels {

/// gelu(x) = x Phi(x) and its derivative Phi(x) + x phi(x), with the normal distribution's Phi and
/// its density phi: the exact gelu, not its tanh or sigmoid stand-ins.
template <typename Real>
struct Gelu {
  Real value;
  Real slope;
};

/// From the C library's erfc, which keeps the relative accuracy of the negative tail.
inline Gelu<double> gelu_exact(double x) {
  const double phi_sum = 0.5 * std::erfc(-x * 0.70710678118654752);
  const double density = 0.39894228040143268 * std::exp(-0.5 * x * x);
  return {x * phi_sum, phi_sum + x * density};
}

/// |Phi - exact| of gelu_fast: 7.5e-8 of the approximation, and the rounding of its polynomial. So
/// gelu is off by at most kGeluError |x| and its slope by at most 2 kGeluError.
constexpr double kGeluError = 4e-7;

/// Float32 without calls but one exponential, which Phi and its density share (Abramowitz and
/// Stegun, 7.1.26). Infinities give their limits, NaN stays NaN.
SUBSPACE_DEVICE inline Gelu<float> gelu_fast(float x) {
  const float z = fabsf(x) * 0.70710678f;
#ifdef __CUDA_ARCH__
  const float e = __expf(-0.5f * x * x);
  const float t = __fdividef(1.0f, 1.0f + 0.3275911f * z);
#else
  const float e = std::exp(-0.5f * x * x);
  const float t = 1.0f / (1.0f + 0.3275911f * z);
#endif
  const float poly =
      t * (0.254829592f +
           t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float tail = 0.5f * poly * e;
  const float phi_sum = x < 0 ? tail : 1.0f - tail;
  // Far out the products 0 * inf would be NaN; the limits are plain.
  if (fabsf(x) > 14.0f) return {x > 0 ? x : 0.0f, x > 0 ? 1.0f : 0.0f};
  return {x * phi_sum, phi_sum + x * (0.39894228f * e)};
}

}  // namespace subspace::kernels
