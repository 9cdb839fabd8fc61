#include "data/masking.h"

#include <cmath>
#include <map>
#include <numeric>

#include "data/data_folder.h"

namespace subspace {
namespace {
using test::error_of, test::expect_says;

MaskingRule bert() {
  MaskingRule rule;
  rule.mask_id = 103;
  rule.vocab_size = 200;
  rule.special = {0, 100, 101, 102, 103};
  return rule;
}

struct Masked {
  std::vector<std::int32_t> inputs, targets;
  std::int64_t predicted = 0;
  bool operator==(const Masked&) const = default;
};

Masked apply(const Masking& masking, std::uint64_t step, const std::vector<std::int32_t>& tokens,
             std::uint64_t first = 0) {
  Masked out{std::vector<std::int32_t>(tokens.size()), std::vector<std::int32_t>(tokens.size())};
  out.predicted = masking.apply(step, tokens, out.inputs, out.targets, first);
  return out;
}

/// Every id of the vocabulary in turn.
std::vector<std::int32_t> vocabulary(std::size_t count) {
  std::vector<std::int32_t> tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<std::int32_t>(i % 200);
  return tokens;
}

/// Within five standard deviations of a binomial share.
void expect_share(double found, double of, double share) {
  EXPECT_GT(of, 0);
  EXPECT_LT(std::abs(found / of - share), 5 * std::sqrt(share * (1 - share) / of))
      << found << " of " << of << ", expected a share of " << share;
}

TEST(MaskingTest, Rates) {
  const auto tokens = vocabulary(400'000);
  const Masked out = apply(Masking(bert(), 1), 3, tokens);
  double ordinary = 0, predicted = 0, masked = 0, kept = 0, replaced = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const bool special = tokens[i] == 0 || (tokens[i] >= 100 && tokens[i] <= 103);
    ordinary += !special;
    if (out.targets[i] == kIgnoredTarget) {
      ASSERT_EQ(out.inputs[i], tokens[i]);
      continue;
    }
    ASSERT_FALSE(special);
    ASSERT_EQ(out.targets[i], tokens[i]);
    ++predicted;
    masked += out.inputs[i] == 103;
    kept += out.inputs[i] == tokens[i];
    replaced += out.inputs[i] != 103 && out.inputs[i] != tokens[i];
  }
  EXPECT_EQ(out.predicted, static_cast<std::int64_t>(predicted));
  expect_share(predicted, ordinary, 0.15);
  expect_share(masked, predicted, 0.8);
  // A random token is the old one once in 195.
  expect_share(kept, predicted, 0.1 + 0.1 / 195);
  expect_share(replaced, predicted, 0.1 * 194 / 195);
}

TEST(MaskingTest, RandomTokensAreOrdinaryAndUniform) {
  MaskingRule rule = bert();
  rule.rate = 1, rule.masked = 0, rule.random = 1;
  const std::vector<std::int32_t> tokens(195'000, 7);
  const Masked out = apply(Masking(rule, 1), 0, tokens);
  std::map<std::int32_t, double> count;
  for (const std::int32_t token : out.inputs) ++count[token];
  EXPECT_EQ(count.size(), 195u);
  for (const std::int32_t special : rule.special) EXPECT_FALSE(count.contains(special));
  EXPECT_TRUE(count.contains(199));
  double chi = 0;
  for (const auto& [token, n] : count) chi += (n - 1000) * (n - 1000) / 1000;
  // 194 degrees of freedom: standard deviation 19.7.
  EXPECT_LT(std::abs(chi - 194), 5 * 19.7);
}

TEST(MaskingTest, IsAFunctionOfSeedStepAndPosition) {
  const auto tokens = vocabulary(4000);
  const Masking masking(bert(), 5);
  const Masked whole = apply(masking, 9, tokens);
  EXPECT_EQ(whole, apply(Masking(bert(), 5), 9, tokens));
  EXPECT_NE(whole, apply(masking, 10, tokens));
  EXPECT_NE(whole, apply(Masking(bert(), 6), 9, tokens));
  // In parts, in another order, and in place.
  for (const std::size_t begin : {3000u, 0u}) {
    std::vector<std::int32_t> part(tokens.begin() + begin, tokens.begin() + begin + 1000);
    std::vector<std::int32_t> targets(1000);
    masking.apply(9, part, part, targets, begin);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.inputs.begin() + begin));
    EXPECT_TRUE(std::equal(targets.begin(), targets.end(), whole.targets.begin() + begin));
  }
}

TEST(MaskingTest, WhatIsChosenDoesNotDependOnTheTokens) {
  const Masking masking(bert(), 5);
  const Masked one = apply(masking, 9, std::vector<std::int32_t>(1000, 7));
  const Masked other = apply(masking, 9, std::vector<std::int32_t>(1000, 150));
  for (std::size_t i = 0; i < 1000; ++i) {
    EXPECT_EQ(one.targets[i] == kIgnoredTarget, other.targets[i] == kIgnoredTarget);
  }
}

TEST(MaskingTest, AllOrNothing) {
  MaskingRule rule = bert();
  rule.rate = 1, rule.masked = 1, rule.random = 0;
  const Masked out = apply(Masking(rule, 1), 0, {101, 7, 102, 0});
  EXPECT_EQ(out.inputs, (std::vector<std::int32_t>{101, 103, 102, 0}));
  EXPECT_EQ(out.predicted, 1);
}

TEST(MaskingTest, WrongRulesAreRefused) {
  struct Case {
    void (*change)(MaskingRule&);
    const char* says;
  };
  for (const Case& c : {
           Case{[](MaskingRule& r) { r.rate = 0; }, "rate of 0"},
           Case{[](MaskingRule& r) { r.rate = 1.5; }, "rate of 1.5"},
           Case{[](MaskingRule& r) { r.rate = NAN; }, "rate of nan"},
           Case{[](MaskingRule& r) { r.masked = 0.95; }, "0.95 masked"},
           Case{[](MaskingRule& r) { r.random = -0.1; }, "-0.1 random"},
           Case{[](MaskingRule& r) { r.random = NAN; }, "nan random"},
           Case{[](MaskingRule& r) { r.mask_id = 200; }, "200"},
           Case{[](MaskingRule& r) { r.mask_id = -1; }, "-1"},
           Case{[](MaskingRule& r) {
                  r.special = {5, 5};
                },
                "rising"},
           Case{[](MaskingRule& r) { r.special = {200}; }, "rising"},
           Case{[](MaskingRule& r) { r.special = {-1}; }, "rising"},
           Case{[](MaskingRule& r) { r.vocab_size = 1, r.mask_id = 0, r.special = {0}; },
                "all 1 tokens"},
       }) {
    MaskingRule rule = bert();
    c.change(rule);
    expect_says(error_of([&] { Masking(rule, 1); }), ErrorCode::InvalidValue, c.says);
  }
  std::vector<std::int32_t> tokens(4), small(3);
  const Masking masking(bert(), 1);
  expect_says(error_of([&] { masking.apply(0, tokens, small, tokens); }), ErrorCode::Internal,
              "3 inputs");
  expect_says(error_of([&] { masking.apply(std::uint64_t{1} << 56, tokens, tokens, tokens); }),
              ErrorCode::Internal, "step");
}

}  // namespace
}  // namespace subspace
