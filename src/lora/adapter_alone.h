#pragma once

#include <string>

#include "base/json.h"
#include "lora/adapted_model.h"

namespace subspace {

/// What can be said of an adapter without its base's weights.
///
///   "modules"   each adapted matrix: singular values of s B A and what they say, from the factors
///   "crossed"   the terms in which the base has no part, of every head at distance 0:
///                 QK, qk  A_q (B_q^i B_k^gT) A_k^T        VO, vo  A_v (B_v^g A_o^i) B_o
///               {"layer", "head", "circuit", "term", "fro", "singular"}; not through latents,
///               whose matrices are the base's, nor with DoRA
///   "wiring"    layers l1 < l2: principal cosines between what o of l1 writes (rows of B_o) and
///               what q, k, v of l2 read (columns of A), beside the kernel sum cos^2 and its mean
///               and deviation for spans turned at random; the norm between them is not folded
///   "missing"   what needs the base, in words
///   "approx"    what the numbers of heads and layers leave out: "data_unweighted", and where the
///               configuration is there "norms_left_out" (weights of norms are the base's),
///               "offset_0" (rotary heads), "qk_norm"
///
/// `model`: its configuration, which says what the heads are; null: "modules" alone. `why`: why
/// there is no more. O(size of A and B) memory; r x r problems.
Json adapter_alone(const Adapter& adapter, const AdaptedModel* model, const std::string& why);

/// The same as tables, with a line of names each.
std::string adapter_modules_csv(const Json& result);
std::string adapter_crossed_csv(const Json& result);

}  // namespace subspace
