#pragma once

#include <cstdint>

#include "kernels/matrix_product.h"

namespace subspace::kernels {

/// The innermost part of matrix_product: a tile of C, [rows, cols], that stays in registers.
///
///   C <- alpha A B + beta C;   beta = 0 does not read C
///
/// a  [k, rows], b [k, cols]: contiguous panels;  c [rows, cols] with `stride` between rows
struct ProductTile {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  void (*run)(std::int64_t k, const double* a, const double* b, double* c, std::int64_t stride,
              double alpha, double beta) = nullptr;
};

/// Versions by instruction set. No tile has more than kMostTileValues values.
constexpr std::int64_t kMostTileValues = 192;
ProductTile product_tile_portable();
ProductTile product_tile_avx2();
ProductTile product_tile_avx512();

/// matrix_product with a given tile, of any instruction set: at most 16 rows and columns, both one
/// of 4, 6, 8, 12 and 16.
void matrix_product_by(const MatrixProduct& p, const ProductTile& tile, int threads);

}  // namespace subspace::kernels
