#pragma once

#include <string>

#include "train/flops.h"

namespace subspace::train {

/// What two models are made equal in.
enum class MatchBy { flops, parameters };
/// "flops" or "params".
MatchBy match_by(const std::string& name);

/// A configuration whose feed-forward part is of another kind, as equal to the reference as one
/// field allows.
struct Matched {
  Json model;         ///< without `train`
  std::string field;  ///< that was chosen
  std::int64_t value = 0;
  MatchBy by = MatchBy::flops;
  ModelCounts reference, found;
};

/// The reference with the feed-forward part `kind` (dense, moe, ethos, peer, molae). All that is
/// not feed-forward stays, so do fields that both kinds have; absent ones get a default (8 experts
/// with 2 active; 65,536 of a neuron, 8 heads of 16, queries of 256, vectors of 256). Then one
/// field is chosen so that the whole model's count is nearest:
///
///   kind    flops                             parameters
///   dense   intermediate_size (all layers)    the same
///   moe     moe_intermediate_size             n_routed_experts
///   ethos   expert_hidden_dim                 num_experts
///   peer    num_expert_heads                  num_experts
///   molae   expert_latent_dim                 num_experts
///
/// Widths are multiples of 32, numbers of experts squares (moe: any number); what cannot be reached
/// within the kernels' limits comes out as near as it can, and `found` says how near. Throws
/// InvalidValue, Unsupported as read_model_config.
Matched match_model(const Json& reference, const Settings& settings, const std::string& kind,
                    MatchBy by, const std::string& where);

/// Both models' names, parameters, FLOPs a token, and the ratios; several lines, the last of them a
/// warning where they are more than a twentieth apart.
std::string match_text(const Matched& matched);
/// "743979008 parameters (744 M), 2451.7 MFLOP a token".
std::string counts_text(const ModelCounts& counts);

/// Which feed-forward part a configuration has: `feed_forward`, or what its fields imply.
std::string feed_forward_kind(const Json& model);

}  // namespace subspace::train
