#include "kernels/small_cholesky.h"

#include <algorithm>

#include "kernels/small_cholesky_body.h"

namespace subspace::kernels {

CholeskySteps cholesky_steps_portable() { return cholesky; }

bool small_cholesky(const double* g, std::int64_t n, double* r, Isa isa) {
  for (std::int64_t i = 0; i < n; ++i) {
    std::fill(r + i * n, r + i * n + i, 0.0);
    std::copy(g + i * n + i, g + (i + 1) * n, r + i * n + i);
  }
#if defined(__x86_64__)
  if (isa != Isa::portable) return cholesky_steps_avx2()(r, n);
#else
  (void)isa;
#endif
  return cholesky_steps_portable()(r, n);
}

}  // namespace subspace::kernels
