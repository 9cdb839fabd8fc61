#pragma once

#include <cstdint>

namespace subspace::kernels {

/// R [n, n] from G's upper triangle in its place; versions by instruction set.
using CholeskySteps = bool (*)(double* r, std::int64_t n);
CholeskySteps cholesky_steps_portable();
CholeskySteps cholesky_steps_avx2();

}  // namespace subspace::kernels
