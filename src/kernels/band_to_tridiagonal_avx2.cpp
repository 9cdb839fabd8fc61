#include "kernels/band_step_body.h"

namespace subspace::kernels {

double band_step_avx2(const BandStep& step) { return band_step(step); }

}  // namespace subspace::kernels
