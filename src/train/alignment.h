#pragma once

#include <filesystem>

#include "base/json.h"

namespace subspace::train {

/// Do the spaces that attention's outputs are written to lie along each other, and along the token
/// embedding?
///
/// A space is spanned by the r leading right singular vectors: of a layer's whole output map, its
/// heads' O_i (through OB where there is an output latent) stacked, [H d_v, d]; of the embedding
/// [V, d]. r is a quarter of the width, or less where a layer's map has no such rank. Two spaces
/// with orthonormal bases A, B [d, r] overlap by
///
///   ||A^T B||_F^2 / r,  the mean of cos^2 of their principal angles:
///
/// 1 for the same space; for spaces in random (Haar) position r / d on average, with the standard
/// deviation sqrt(2 / ((d - 1)(d + 2))) (1 - r / d).
///
/// {output_rank: r, overlap_of_layers: mean over all pairs, overlap_of_neighbours: over adjacent
/// layers, overlap_with_embedding: mean over layers (models of tokens), overlap_by_chance: r / d,
/// overlap_by_chance_sd}. float64. Throws as Checkpoint and open_family.
Json output_alignment(const std::filesystem::path& run, int threads);

}  // namespace subspace::train
