// Compiled for AVX2 and FMA: twelve packs of sums, two of B and one of A in sixteen registers.
#include "kernels/product_tile_body.h"

namespace subspace::kernels {

ProductTile product_tile_avx2() { return Tile<6, 2, 4>::tile(); }

}  // namespace subspace::kernels
