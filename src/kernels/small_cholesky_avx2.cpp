#include "kernels/small_cholesky_body.h"

namespace subspace::kernels {

CholeskySteps cholesky_steps_avx2() { return cholesky; }

}  // namespace subspace::kernels
