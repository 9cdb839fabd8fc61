#pragma once

#include <cstdint>

namespace subspace::kernels {

/// A <- Q^T A Q, upper Hessenberg.
struct Hessenberg {
  double* a = nullptr;  ///< [n, width], zero from column n on
  std::int64_t n = 0, width = 0;
  double* scratch = nullptr;  ///< [3 width]
};

/// One sweep of a double shift over rows and columns low .. high of a Hessenberg matrix, which
/// alone are kept up to date; x, y, z is the first column of the shifted product.
struct FrancisSweep {
  double* h = nullptr;  ///< [.., width], at least 4 beyond `high`
  std::int64_t width = 0;
  std::int64_t low = 0, high = 0;
  double x = 0, y = 0, z = 0;
};

/// Versions by instruction set.
struct EigenSteps {
  void (*hessenberg)(const Hessenberg& p);
  void (*sweep)(const FrancisSweep& p);
};
EigenSteps eigen_steps_portable();
EigenSteps eigen_steps_avx2();

}  // namespace subspace::kernels
