#include "experts/tokens.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"

namespace subspace::experts {
namespace {

/// Four tokens alike in frequency; token t always chooses expert t, and one of 4 .. 7 at random.
struct Planted {
  Observed layer;
  at::Tensor tokens;
  Planted() {
    constexpr std::int64_t kTokens = 4000;
    Random random(3);
    tokens = at::arange(kTokens, at::kLong) % 4;
    layer.experts = 8;
    layer.index = at::empty({kTokens, 2, 1}, at::kInt);
    auto* index = layer.index.data_ptr<std::int32_t>();
    for (std::int64_t t = 0; t < kTokens; ++t) {
      index[2 * t] = static_cast<std::int32_t>(t % 4);
      index[2 * t + 1] = 4 + static_cast<std::int32_t>(random.uniform() * 4);
    }
  }
};

TEST(TokensOfExperts, FindTheTokenThatAnExpertIsChosenBy) {
  const Planted planted;
  const Json found = tokens_of_experts(planted.layer, planted.tokens, {"a", "b", "\u0120c"}, 4);
  // Half of the choices tell the token: log 4 there, nothing in the other half.
  EXPECT_NEAR(found.at("information").get<double>(), 0.5 * std::log(4), 0.01);
  EXPECT_LT(found.at("chance").get<double>(), 0.02);
  EXPECT_EQ(found.at("tokens"), 4);
  std::set<std::int64_t> particular;
  for (const Json& expert : found.at("experts")) {
    const auto number = expert.at("expert").get<std::int64_t>();
    if (number >= 4) {
      EXPECT_LT(expert.at("particular").get<double>(), 0.02) << number;
      continue;
    }
    particular.insert(number);
    EXPECT_NEAR(expert.at("particular").get<double>(), std::log(4), 1e-12);
    const Json& token = expert.at("tokens")[0];
    EXPECT_EQ(token.at("id"), number);
    EXPECT_EQ(token.at("share"), 1.0);
    EXPECT_NEAR(token.at("lift").get<double>(), 4, 1e-12);
    EXPECT_EQ(token.at("count"), 1000);
    const char* names[] = {"a", "b", "\u2581c", "#3"};
    EXPECT_EQ(token.at("token"), names[number]);
  }
  EXPECT_EQ(particular.size(), 4U) << "used or particular, each of them is listed";
}

TEST(TokensOfExperts, AnExpertThatIsSeldomChosenIsNotParticular) {
  Planted planted;
  planted.layer.experts = 9;
  planted.layer.index[17][1][0] = 8;  // once, by one token
  const Json found = tokens_of_experts(planted.layer, planted.tokens, {}, 8);
  for (const Json& expert : found.at("experts")) {
    if (expert.at("expert") == 8) {
      EXPECT_EQ(expert.at("why"), "used");
    }
  }
}

}  // namespace
}  // namespace subspace::experts
