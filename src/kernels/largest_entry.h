#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace subspace::kernels {

/// Largest |a_ij| of a matrix whose rows are `stride` apart; 0 if it is empty, NaN if an entry is
/// not finite.
inline double largest_entry(const double* a, std::int64_t rows, std::int64_t columns,
                            std::int64_t stride) {
  double largest = 0;
  bool finite = true;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      const double x = std::abs(a[i * stride + j]);
      finite = finite && x <= std::numeric_limits<double>::max();
      largest = std::max(largest, x);
    }
  }
  return finite ? largest : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace subspace::kernels
