#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace subspace {

/// Losses of one setting of the gates, one a batch.
using Losses = std::vector<double>;

/// Losses with the players of that set switched on. Deterministic; each set is asked for once.
using Game = std::function<Losses(const std::vector<bool>& on)>;

/// Players up to which every set is asked for unless a caller says otherwise.
inline constexpr std::int64_t kMostExactPlayers = 6;

/// Shapley values of the loss drop, loss(nobody) - loss(everybody), batch by batch:
///
///   phi_i = mean over orders of the players of  loss(those before i) - loss(those before i, and i)
///
/// [players][batches]; for every batch they sum to its drop. Exact for up to `exact` players (all
/// 2^n sets); beyond that the mean over `orders` random orders, drawn in pairs of an order and its
/// reverse, from `seed` (Castro et al. 2009; antithetic pairs: Mitchell et al. 2022). The sum is
/// exact either way. Throws InvalidValue for no players, or fewer than one order where it samples.
std::vector<Losses> shapley_values(const Game& game, std::int64_t players, std::int64_t orders,
                                   std::uint64_t seed, std::int64_t exact = kMostExactPlayers);

/// Mean over batches with a 95 % interval: percentiles of the mean over `resamples` bootstrap
/// resamples of the batches (Efron 1979), from `seed`. Throws InvalidValue for no values.
struct Estimate {
  double mean = 0, low = 0, high = 0;
};
Estimate bootstrap_mean(const Losses& values, std::uint64_t seed, std::int64_t resamples = 1000);

}  // namespace subspace
