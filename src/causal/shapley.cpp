#include "causal/shapley.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "base/error.h"
#include "base/random.h"

namespace subspace {
namespace {

/// A game that computes each set once.
class Cached {
 public:
  explicit Cached(const Game& game) : game_(game) {}
  const Losses& operator()(const std::vector<bool>& on) {
    auto found = known_.find(on);
    if (found == known_.end()) found = known_.emplace(on, game_(on)).first;
    return found->second;
  }

 private:
  const Game& game_;
  std::map<std::vector<bool>, Losses> known_;
};

/// values += weight (before - after)
void add_drop(Losses& values, double weight, const Losses& before, const Losses& after) {
  if (values.empty()) values.assign(before.size(), 0.0);
  for (std::size_t b = 0; b < values.size(); ++b) values[b] += weight * (before[b] - after[b]);
}

std::vector<Losses> exact_values(Cached& losses, std::size_t players) {
  std::vector<Losses> values(players);
  // |S|! (n - |S| - 1)! / n!
  std::vector<double> weight(players);
  for (std::size_t size = 0; size < players; ++size) {
    weight[size] =
        std::exp(std::lgamma(size + 1.0) + std::lgamma(static_cast<double>(players - size)) -
                 std::lgamma(players + 1.0));
  }
  for (std::size_t set = 0; set < (std::size_t{1} << players); ++set) {
    std::vector<bool> on(players);
    std::size_t size = 0;
    for (std::size_t i = 0; i < players; ++i) {
      on[i] = ((set >> i) & 1U) != 0;
      size += on[i] ? 1 : 0;
    }
    const Losses before = losses(on);
    for (std::size_t i = 0; i < players; ++i) {
      if (on[i]) continue;
      on[i] = true;
      add_drop(values[i], weight[size], before, losses(on));
      on[i] = false;
    }
  }
  return values;
}

std::vector<Losses> sampled_values(Cached& losses, std::size_t players, std::int64_t orders,
                                   std::uint64_t seed) {
  std::vector<Losses> values(players);
  std::vector<std::size_t> order(players);
  Random random(seed, 0x73686170);
  for (std::int64_t n = 0; n < orders; ++n) {
    if (n % 2 == 1) {
      std::reverse(order.begin(), order.end());
    } else {
      std::iota(order.begin(), order.end(), std::size_t{0});
      for (std::size_t i = players; i > 1; --i) {
        const auto j = static_cast<std::size_t>(random.uniform() * static_cast<double>(i));
        std::swap(order[i - 1], order[j]);
      }
    }
    std::vector<bool> on(players);
    Losses before = losses(on);
    for (const std::size_t player : order) {
      on[player] = true;
      const Losses& after = losses(on);
      add_drop(values[player], 1 / static_cast<double>(orders), before, after);
      before = after;
    }
  }
  return values;
}

}  // namespace

std::vector<Losses> shapley_values(const Game& game, std::int64_t players, std::int64_t orders,
                                   std::uint64_t seed, std::int64_t exact) {
  if (players < 1) fail(ErrorCode::InvalidValue, "Shapley values of no players");
  Cached losses(game);
  if (players <= exact) return exact_values(losses, static_cast<std::size_t>(players));
  if (orders < 1) {
    fail(ErrorCode::InvalidValue, "{} players need sampled orders; found {}, expected 1 or more",
         players, orders);
  }
  return sampled_values(losses, static_cast<std::size_t>(players), orders, seed);
}

Estimate bootstrap_mean(const Losses& values, std::uint64_t seed, std::int64_t resamples) {
  if (values.empty()) fail(ErrorCode::InvalidValue, "an interval of no values");
  const auto count = static_cast<double>(values.size());
  Estimate out;
  out.mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  Random random(seed, 0x626f6f74);
  std::vector<double> means(static_cast<std::size_t>(resamples));
  for (double& mean : means) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      mean += values[static_cast<std::size_t>(random.uniform() * count)];
    }
    mean /= count;
  }
  std::sort(means.begin(), means.end());
  auto percentile = [&](double p) {
    return means[static_cast<std::size_t>(std::lround(p * static_cast<double>(means.size() - 1)))];
  };
  out.low = percentile(0.025);
  out.high = percentile(0.975);
  return out;
}

}  // namespace subspace
