#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "attention/layer.h"

namespace subspace {

enum class HeadScaling { none, spectral, frobenius };

/// Between which spaces the fused maps of a latent attention go. Without latents both are the same.
enum class Space {
  latent,  ///< Q_i K_i^T and V_i O_i as stored
  model,   ///< QA Q_i K_i^T KVA^T and KVA V_i O_i OB
};

/// What is computed of a layer, and under which conventions.
struct SpectraOptions {
  /// Each head divided, before stacking, by: nothing | its sigma_1 | its Frobenius norm.
  HeadScaling normalize = HeadScaling::none;
  /// Norm weights folded into what reads the norm's output.
  bool fold_norms = false;
  Space space = Space::latent;
  /// Offsets of the rotary map QK@delta.
  std::vector<std::int64_t> offsets = {0, 1, 2, 4, 8, 16, 32, 64, 128, 256};
  /// Householder SVD of the real matrices (slow; for checking) instead of Gram matrices.
  bool exact = false;
  /// Heads with NaN or Inf get a row of NaN and are left out of stacks, instead of NotFinite.
  bool mark_nonfinite = false;
  /// The procedure published in July 2025, faults included, so that its tables can be compared:
  /// K and V are the upper and lower part of kv_b_proj, not each head's own rows; the stack QK is
  /// divided by sigma_1 twice; KVA and Kpe stay without the input norm that QA gets. Meant to go
  /// with normalize = spectral and fold_norms (published_2025() sets all three).
  bool published_faults = false;
};

SpectraOptions published_2025();

/// The singular values of one map of a layer, each row descending, float64 on the CPU.
struct MapSpectra {
  std::string map;                  ///< "Q", "VO", "QK@16", ...
  at::Tensor heads;                 ///< [heads or groups, n], or undefined; NaN: a marked head
  at::Tensor stack;                 ///< [n], or undefined
  std::vector<std::int64_t> shape;  ///< [rows, cols] of one head's matrix
  std::vector<std::int64_t> stack_shape;
  /// Dimensions of the chain of Gaussian matrices that has this shape by chance: N0 x N1 x ... x
  /// NK.
  std::vector<std::int64_t> chain;
  std::vector<std::int64_t> stack_chain;
  /// The stack is block diagonal of that many blocks, each with the stack_chain: heads of different
  /// groups write to output latents of their own.
  std::int64_t stack_blocks = 1;
};

/// What layer_spectra returns.
struct LayerMaps {
  std::vector<MapSpectra> maps;
  std::vector<std::string> notes;  ///< anything unusual, in words (marked heads)
};

/// Every spectrum of a layer (docs/maps.md lists them). No fused map is ever formed:
///
///   heads   sigma(X_i) from the Gram matrix of its thin side;
///           sigma(V_i O_i) = sqrt eig(L^T (O_i O_i^T) L),  L L^T = V_i^T V_i
///           sigma(Q_i R(delta) K_i^T) = sigma(L_Q^T R(delta) L_K)
///   stacks  sum_i X_i^T X_i;  VO: sum_i O_i^T (V_g^T V_g) O_i;  OV: sum_i V_g (O_i O_i^T) V_g^T;
///           QK: sum_i K_g (Q_i^T Q_i) K_g^T;  KQ: sum_i Q_i (K_g^T K_g) Q_i^T
///   model   QA = U R  ->  R Q_i in place of Q_i (likewise KVA), R^T R = QA^T QA
///
/// Where each group of heads has an output latent of its own (OB with several groups), the stacks O
/// and, in the latent space, VO are block diagonal: the values of all groups together.
///
/// n is min(rows, cols), for fused heads also the head's width and for the model space also the
/// latent's: values beyond are zero and not listed. In the model space the latents' triangular
/// factors come from Gram matrices even with `exact`.
/// Cost: about d^2 H d_v operations for each of O and VO, which dominate, and their eigenvalues.
/// Throws NotFinite if the weights hold NaN or Inf; with mark_nonfinite only if a matrix that all
/// heads share (latents, norms) does.
LayerMaps layer_spectra(const AttentionLayer& layer, const SpectraOptions& options);

}  // namespace subspace
