#pragma once

#include "experts/vectors.h"
#include "spectrum/layer_spectra.h"

namespace subspace::experts {

/// Singular values of a layer's matrices, as stacks of the spectra system:
///
///   Z              latents [N, d_l]
///   TABLE          h_e = gelu(z_e W1) of all experts [N, d_h]; TABLE-MEAN: their mean taken out,
///                  which gelu gives all of them and which says nothing of one
///   DOWN, UP       stored experts [N, width]
///   W1, WU, WV     the matrices that experts share;  K1, K2: the routers' keys
///
/// Tables go through Gram matrices of their columns a few thousand rows at a time and are never
/// there whole. N d_h (d_l + d_h) operations.
std::vector<MapSpectra> expert_spectra(const ExpertTensors& tensors);

/// The singular values of X from its thinner side's Gram matrix, descending.
at::Tensor singular_values(const at::Tensor& x);

}  // namespace subspace::experts
