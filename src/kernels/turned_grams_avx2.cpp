#include "kernels/turned_grams_body.h"

namespace subspace::kernels {

TurnedGramsSteps turned_grams_avx2() { return turned_rows; }

}  // namespace subspace::kernels
