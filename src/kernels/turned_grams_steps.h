#pragma once

#include "kernels/turned_grams.h"

namespace subspace::kernels {

/// Versions by instruction set; scratch [turned_grams_scratch(p)], zero.
using TurnedGramsSteps = void (*)(const TurnedGrams& p, double* scratch);
TurnedGramsSteps turned_grams_portable();
TurnedGramsSteps turned_grams_avx2();

}  // namespace subspace::kernels
