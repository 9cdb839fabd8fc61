#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "lora/terms.h"

namespace subspace {

/// A circuit in orthonormal coordinates of what its sides span, head by head, base first:
///
///   [X_0^i | spans of the changes] = Q_L^i T_L^i,   X_a = Q_L C_a;   the same on the right, Q_R,
///   D_b M_i' = Q_L (sum C_a R D_b^T) Q_R^T
///
/// so every inner product, singular value and share of M is that of cores (k + r) x (k + r) and no
/// d x d matrix is formed. The first coordinates are the base's span, so that what a change adds
/// outside of it stands in the rows below.
struct Frames {
  /// rows: k + r or fewer; pieces, switches and rotation as in the circuit that it stands for.
  Circuit circuit;
  /// 1 for coordinates within the column (row) span of the base M_i, 0 outside: [count, rows].
  at::Tensor left_base, right_base;
};

/// Y^T X [H, k, k] of the base and of the adapted circuit at offset 0.
struct Turned {
  at::Tensor base, adapted;
};

/// One side, weighted and without latents, and what is summed over its rows.
struct SideProducts {
  Side side;
  at::Tensor grams;  ///< [count, P, P] of its spans side by side; undefined: not formed yet
};

/// Everything of a circuit that takes sums over the model's width. On a GPU they are formed at
/// once, in a few batched products, and fetched; what is done with them is small and done on the
/// CPU. For a circuit on the CPU they are formed where they are used, while a head's matrices are
/// in the cache.
struct CircuitProducts {
  Circuit circuit;
  SideProducts left, right;
  Circuit still;  ///< the circuit at offset 0
  Turned turned;  ///< undefined: not formed yet
};

struct ProductOptions {
  /// [any, d], undefined: none: a factor C with C^T C = S, the second moment of what the side
  /// reads; X becomes C X.
  at::Tensor left_weight, right_weight;
  bool turned = true;    ///< Y^T X too, if both sides are in one space
  bool batched = false;  ///< on the CPU as on a GPU
};

/// With P = k + r, 2 d P^2 operations a matrix and, for Y^T X, a head. Nothing waits for the device
/// unless there are latents.
CircuitProducts products_of(const Circuit& circuit, const ProductOptions& options = {});

/// All that frames, eigenvalues and shared bases need of the products, to the CPU, waiting for the
/// device once. The base's matrices stay where they are.
void fetch(std::vector<CircuitProducts>& products);

/// Whether a piece is of one change alone, in a thin factor that all heads share.
bool shared_by_heads(const Piece& piece, std::int64_t width);

/// Triangular factors of every head's (or group's) spans, from their Gram matrix where
/// no column is within an angle of 0.01 of those before it, else by Householder reflections;
/// through latents first one of what all heads share. Where a base M_i is rank deficient, to
/// max(rows) eps sigma_1, the coordinates are turned into its singular vectors, so that the masks
/// stay right.
///
/// 2 d (k + r)^2 operations a matrix, count (k + r)^2 memory. Accuracy: (k + r) eps |X| by
/// reflections; by Gram matrices inner products are as good, while a part of size s outside the
/// other columns' span is known to 2e-12 |X|^2 / s, and a singular value likewise.
/// The frames are on the CPU, wherever the circuit is; the products must be fetched.
Frames frames_of(const CircuitProducts& products);
Frames frames_of(const Circuit& circuit, const at::Tensor& left_weight = {},
                 const at::Tensor& right_weight = {});

/// Y_b^T X_a between all pieces, summed: Y^T X [H, k, k] of the base and of the adapted circuit at
/// offset 0, whose eigenvalues are the nonzero ones of M = X Y^T. Needs both sides in one space
/// (not a QK or VO between different widths). O(H k^2 d).
Turned turned(const CircuitProducts& products);

}  // namespace subspace
