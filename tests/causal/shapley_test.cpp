#include "causal/shapley.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/error.h"

namespace subspace {
namespace {

/// Losses of a game on two batches: a part of each player's own, and a pair that works only
/// together.
Losses game_of(const std::vector<bool>& on) {
  double own = 0;
  for (std::size_t i = 0; i < on.size(); ++i) own += on[i] ? 1.0 + static_cast<double>(i) : 0;
  const double together = on[0] && on[1] ? 6 : 0;
  return {20 - own - together, 40 - 2 * own};
}

TEST(Shapley, ExactValuesAreOwnPartsAndHalfOfWhatTwoDoTogether) {
  const auto values = shapley_values(game_of, 4, 0, 0);
  ASSERT_EQ(values.size(), 4U);
  const double expected[4][2] = {{1 + 3, 2}, {2 + 3, 4}, {3, 6}, {4, 8}};
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(values[i][0], expected[i][0], 1e-12);
    EXPECT_NEAR(values[i][1], expected[i][1], 1e-12);
  }
}

TEST(Shapley, SampledValuesSumToTheDropAndPairsOfOrdersSplitAPairExactly) {
  const auto values = shapley_values(game_of, 9, 4, 7);
  double sum[2] = {0, 0};
  for (const Losses& value : values) {
    sum[0] += value[0];
    sum[1] += value[1];
  }
  EXPECT_NEAR(sum[0], 45 + 6, 1e-12);
  EXPECT_NEAR(sum[1], 90, 1e-12);
  EXPECT_NEAR(values[0][0], 4, 1e-12);  // an order and its reverse: once first, once second
  EXPECT_NEAR(values[1][0], 5, 1e-12);
}

TEST(Shapley, EachSetIsAskedForOnce) {
  int asked = 0;
  shapley_values(
      [&](const std::vector<bool>& on) {
        ++asked;
        return game_of(on);
      },
      5, 0, 0);
  EXPECT_EQ(asked, 32);
}

TEST(Shapley, NoPlayersOrNoOrdersIsAnError) {
  EXPECT_THROW(shapley_values(game_of, 0, 1, 0), Error);
  EXPECT_THROW(shapley_values(game_of, 7, 0, 0), Error);
}

TEST(BootstrapMean, IntervalOfAMeanHasItsStandardErrorAndIsTheSameAgain) {
  Losses values;
  for (int i = 0; i < 400; ++i) values.push_back(std::sin(i * 12.9898) * 3 + 5);
  const Estimate found = bootstrap_mean(values, 3), again = bootstrap_mean(values, 3);
  EXPECT_EQ(found.low, again.low);
  double squares = 0;
  for (const double value : values) squares += (value - found.mean) * (value - found.mean);
  const double error = std::sqrt(squares / 400 / 399);
  EXPECT_NEAR((found.high - found.low) / (2 * 1.96 * error), 1, 0.1);
  EXPECT_LT(found.low, found.mean);
  EXPECT_GT(found.high, found.mean);
  EXPECT_EQ(bootstrap_mean({2, 2, 2}, 0).high, 2);
  EXPECT_THROW(bootstrap_mean({}, 0), Error);
}

}  // namespace
}  // namespace subspace
