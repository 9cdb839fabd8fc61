// Compiled for AVX-512: 24 packs of sums of 32 registers; A is broadcast from memory.
#include "kernels/product_tile_body.h"

namespace subspace::kernels {

ProductTile product_tile_avx512() { return Tile<12, 2, 8>::tile(); }

}  // namespace subspace::kernels
