#pragma once

#include "experts/neighbours.h"

namespace subspace::experts {

/// What lies between two experts: h(t) = gelu(((1 - t) z_a + t z_b) W1), t = 0, 0.1, .. 1, for up
/// to 24 pairs of an expert with its nearest one, and as many of two that are drawn. For each pair,
/// at every t:
///
///   to_a, to_b   cosine of h(t) with either end (the experts' mean taken out)
///   length       ||h(t)|| over the line between the ends' lengths
///   departure    ||h(t) - (1 - t) h_a - t h_b|| / ||h_a - h_b||: 0 if generating were linear
///   response     where inputs are known: of gelu(h(t) . xp) over tokens, the distance from the
///                blend of the two experts' over the distance of these two, in the root mean square
///
/// and `midpoint`, the nearest expert to h(1/2): {expert, cosine, end: whether it is one of the
/// two}. {t, pairs: [{kind: "nearest" | "drawn", a, b, cosine, ...}]}. For generated experts only;
/// `x` [tokens, d] may be undefined.
Json interpolation_of_experts(const ExpertTensors& tensors, const Neighbourhood& neighbourhood,
                              const at::Tensor& x);

}  // namespace subspace::experts
