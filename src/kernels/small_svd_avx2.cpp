#include "kernels/small_svd_body.h"

namespace subspace::kernels {

SvdSteps svd_steps_avx2() { return {bidiagonalise, reflect, rotate, bidiagonal_sweeps}; }

}  // namespace subspace::kernels
