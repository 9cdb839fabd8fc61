#include "kernels/small_eigenvalues_body.h"

namespace subspace::kernels {

EigenSteps eigen_steps_avx2() { return {hessenberg, francis_sweeps}; }

}  // namespace subspace::kernels
