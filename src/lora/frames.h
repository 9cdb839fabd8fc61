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

/// Triangular factors of every head's (or group's) spans: on the CPU from their Gram matrix where
/// no column is within an angle of 0.01 of those before it, else by Householder reflections;
/// through latents first one of what all heads share. Where a base M_i is rank deficient, to
/// max(rows) eps sigma_1, the coordinates are turned into its singular vectors, so that the masks
/// stay right.
///
/// 2 d (k + r)^2 operations a matrix, count (k + r)^2 memory. Accuracy: (k + r) eps |X| by
/// reflections; by Gram matrices inner products are as good, while a part of size s outside the
/// other columns' span is known to 2e-12 |X|^2 / s, and a singular value likewise.
/// `left_weight`, `right_weight` [any, d], undefined: none: a factor C with C^T C = S, the second
/// moment of what the side reads; X becomes C X.
Frames frames_of(const Circuit& circuit, const at::Tensor& left_weight = {},
                 const at::Tensor& right_weight = {});

/// Y_b^T X_a between all pieces, summed: Y^T X [H, k, k] of the base and of the adapted circuit at
/// offset 0, whose eigenvalues are the nonzero ones of M = X Y^T. Needs both sides in one space
/// (not a QK or VO between different widths). O(H k^2 d).
struct Turned {
  at::Tensor base, adapted;
};
Turned turned(const Circuit& circuit);

}  // namespace subspace
