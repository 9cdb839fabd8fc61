#include "kernels/column_sums.h"

namespace subspace::kernels {

void add_column_sums_cpu(const float* partial, std::int64_t pieces, std::int64_t stride,
                         std::int64_t width, float* out) {
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    for (std::int64_t c = 0; c < width; ++c) out[c] += partial[piece * stride + c];
  }
}

}  // namespace subspace::kernels
