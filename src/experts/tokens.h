#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "experts/observe.h"

namespace subspace::experts {

/// Which tokens choose which expert, over the choices (t, e) of a layer, all heads together:
///
///   information = sum p(t, e) log(p(t, e) / (p(t) p(e)))  nats: what the token says of the expert
///   chance      the same with the tokens of the text in another order, which few choices give too
///
/// and for some experts (the `most` of largest count, then as many of largest D among those with at
/// least 32 choices and half the mean) the tokens that stand out: count, share n_te / n_e, lift =
/// share / p(t), ordered by n_te log lift;
///
///   D_e = sum_t p(t | e) log(p(t | e) / p(t))   how particular an expert is, nats
///
/// {information, chance, tokens (different ones), experts: [{expert, why: "used" | "particular",
/// choices, particular, tokens: [{id, token, count, share, lift}]}]}. `vocabulary` may be empty:
/// then tokens are "#id". O(choices log choices).
Json tokens_of_experts(const Observed& layer, const at::Tensor& tokens,
                       const std::vector<std::string>& vocabulary, std::int64_t most = 8);

}  // namespace subspace::experts
