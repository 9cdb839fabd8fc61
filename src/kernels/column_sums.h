#pragma once

#include <cstdint>

#include "kernels/device.h"

namespace subspace::kernels {

/// How rows are cut for sums over them: `pieces` runs of `rows` rows each, the last one shorter.
/// Depends on the shape alone, so a sum has the same order, and the same bits, every time.
struct RowPieces {
  std::int64_t pieces = 0, rows = 0;
};
inline RowPieces row_pieces(std::int64_t rows, std::int64_t most) {
  if (rows == 0) return {0, 0};
  const std::int64_t each = (rows + most - 1) / most;
  return {(rows + each - 1) / each, each};
}

/// out[c] += sum over pieces of partial[piece, c], in order. `width` columns, rows of `partial`
/// `stride` apart.
void add_column_sums_cpu(const float* partial, std::int64_t pieces, std::int64_t stride,
                         std::int64_t width, float* out);
void add_column_sums_cuda(const float* partial, std::int64_t pieces, std::int64_t stride,
                          std::int64_t width, float* out, Stream stream);

}  // namespace subspace::kernels
