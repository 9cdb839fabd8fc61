#pragma once

#include <cstdint>

namespace subspace::kernels {

/// A <- Q^T A Q, upper Hessenberg.
struct Hessenberg {
  double* a = nullptr;  ///< [n, width], zero from column n on
  std::int64_t n = 0, width = 0;
  double* scratch = nullptr;  ///< [hessenberg_scratch(width)]
};
/// Its reflections are applied so many at once.
constexpr std::int64_t kHessenbergPanel = 16;
constexpr std::int64_t hessenberg_scratch(std::int64_t width) {
  return (3 * kHessenbergPanel + 5) * width + kHessenbergPanel * (kHessenbergPanel + 1);
}

/// One sweep of a double shift in each of four Hessenberg matrices whose elements stand side by
/// side: rows and columns low .. high, which alone are kept up to date; none where low > high. An
/// element of a matrix goes through the same operations whatever the others' are.
struct FrancisSweeps {
  double* h = nullptr;     ///< [> n + 1, width, 4], zero beyond n
  std::int64_t width = 0;  ///< n + 2 or more
  std::int64_t low[4] = {}, high[4] = {};
  double first[12] = {};  ///< [3, 4]: first column of the shifted product
};

/// Versions by instruction set.
struct EigenSteps {
  void (*hessenberg)(const Hessenberg& p);
  void (*sweep)(const FrancisSweeps& p);
};
EigenSteps eigen_steps_portable();
EigenSteps eigen_steps_avx2();

}  // namespace subspace::kernels
