#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "attention/layer.h"

namespace subspace {

enum class HeadScaling { none, spectral, frobenius };

/// What is computed of a layer, and under which conventions.
struct SpectraOptions {
  /// Each head divided, before stacking, by: nothing | its sigma_1 | its Frobenius norm.
  HeadScaling normalize = HeadScaling::none;
  /// Norm weights folded into what reads the norm's output.
  bool fold_norms = false;
  /// Offsets of the rotary map QK@delta.
  std::vector<std::int64_t> offsets = {0, 1, 2, 4, 8, 16, 32, 64, 128, 256};
  /// Householder SVD of the real matrices (slow; for checking) instead of Gram matrices.
  bool exact = false;
};

/// The singular values of one map of a layer, each row descending, float64 on the CPU.
struct MapSpectra {
  std::string map;                  ///< "Q", "VO", "QK@16", ...
  at::Tensor heads;                 ///< [heads or groups, n], or undefined
  at::Tensor stack;                 ///< [n], or undefined
  std::vector<std::int64_t> shape;  ///< [rows, cols] of one head's matrix
  std::vector<std::int64_t> stack_shape;
  /// Dimensions of the chain of Gaussian matrices that has this shape by chance: N0 x N1 x ... x
  /// NK.
  std::vector<std::int64_t> chain;
  std::vector<std::int64_t> stack_chain;
};

/// Every spectrum of a layer (docs/maps.md lists them). No fused map is ever formed:
///
///   heads   sigma(X_i) from the Gram matrix of its thin side;
///           sigma(V_i O_i) = sqrt eig(L^T (O_i O_i^T) L),  L L^T = V_i^T V_i
///   stacks  sum_i X_i^T X_i;  VO: sum_i O_i^T (V_i^T V_i) O_i;  OV: sum_i V_i (O_i O_i^T) V_i^T;
///           QK: sum_i K_i (Q_i^T Q_i) K_i^T;  KQ: sum_i Q_i (K_i^T K_i) Q_i^T
///
/// Cost: about d^2 H d_v operations for each of O and VO, which dominate, and their eigenvalues.
/// Throws NotFinite if the weights hold NaN or Inf.
std::vector<MapSpectra> layer_spectra(const AttentionLayer& layer, const SpectraOptions& options);

}  // namespace subspace
