#include "experts/use.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"

namespace subspace::experts {
namespace {

std::vector<std::int64_t> integers(const Json& list) {
  return list.get<std::vector<std::int64_t>>();
}

TEST(UseOfExperts, EqualsCountingByHand) {
  // 16 choices of 8 experts: 8, 5, 2, 1 and four never.
  const at::Tensor counts = at::tensor({0, 8, 2, 0, 1, 5, 0, 0}, at::kLong).unsqueeze(0);
  const Json found = use_of_experts(counts);
  EXPECT_FALSE(found.contains("heads")) << "one head is all of them";
  const Json& use = found.at("all");
  EXPECT_EQ(use.at("choices"), 16);
  EXPECT_EQ(use.at("used"), 0.5);
  EXPECT_EQ(use.at("largest"), 0.5);
  EXPECT_EQ(use.at("top_percent"), 0.5) << "a hundredth of eight is one expert";
  double entropy = 0;
  for (const double p : {8 / 16.0, 5 / 16.0, 2 / 16.0, 1 / 16.0}) entropy -= p * std::log(p);
  EXPECT_NEAR(use.at("entropy").get<double>(), entropy, 1e-14);
  EXPECT_NEAR(use.at("kl_uniform").get<double>(), std::log(8) - entropy, 1e-14);
  EXPECT_EQ(integers(use.at("curve").at("rank")),
            (std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(use.at("curve").at("share")[2], 2 / 16.0);
  EXPECT_EQ(use.at("curve").at("share")[7], 0);
  const Json& bins = use.at("histogram");
  EXPECT_EQ(integers(bins.at("from")), (std::vector<std::int64_t>{0, 1, 2, 4, 8}));
  EXPECT_EQ(integers(bins.at("to")), (std::vector<std::int64_t>{0, 1, 3, 7, 15}));
  EXPECT_EQ(integers(bins.at("experts")), (std::vector<std::int64_t>{4, 1, 1, 1, 1}));
}

TEST(UseOfExperts, HeadsAreCountedApartAndTogether) {
  const at::Tensor counts = at::tensor({3, 0, 0, 0, 0, 3}, at::kLong).view({2, 3});
  const Json found = use_of_experts(counts);
  ASSERT_EQ(found.at("heads").size(), 2U);
  EXPECT_EQ(found.at("heads")[0].at("entropy"), 0.0);
  EXPECT_NEAR(found.at("all").at("entropy").get<double>(), std::log(2), 1e-14);
}

TEST(UseOfExperts, NothingChosenIsZeros) {
  const Json use = use_of_experts(at::zeros({2, 5}, at::kLong)).at("all");
  for (const char* name : {"choices", "used", "entropy", "top_percent", "largest"}) {
    EXPECT_EQ(use.at(name), 0) << name;
  }
  EXPECT_EQ(integers(use.at("histogram").at("experts")), (std::vector<std::int64_t>{5}));
}

TEST(EvenUse, IsWhatEvenChoicesGive) {
  constexpr std::int64_t kExperts = 2000;
  for (const std::int64_t choices : {700, 5000, 60000}) {
    Random random(11);
    at::Tensor counts = at::zeros({1, kExperts}, at::kLong);
    auto* count = counts.data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < choices; ++i) {
      ++count[static_cast<std::int64_t>(random.uniform() * kExperts)];
    }
    const Json use = use_of_experts(counts).at("all");
    const EvenUse even(choices, kExperts);
    // Five standard deviations of a share, and a part in a hundred of a nat.
    EXPECT_NEAR(use.at("used").get<double>(), even.used, 5 * 0.5 / std::sqrt(kExperts)) << choices;
    EXPECT_NEAR(use.at("entropy").get<double>(), even.entropy, 0.02) << choices;
    const std::vector<std::int64_t> sorted = [&] {
      std::vector<std::int64_t> out(count, count + kExperts);
      std::sort(out.begin(), out.end(), std::greater<>());
      return out;
    }();
    for (const std::int64_t rank : {20, 300, 1000, 1900}) {
      EXPECT_NEAR(static_cast<double>(sorted[static_cast<std::size_t>(rank - 1)]),
                  static_cast<double>(even.at_rank(rank)),
                  1 + 0.05 * static_cast<double>(choices) / kExperts)
          << choices << " " << rank;
    }
    double experts = 0;
    for (std::int64_t low = 0, high = 0; low < 4 * choices; low = high + 1, high = 2 * low - 1) {
      experts += even.between(low, high);
    }
    EXPECT_NEAR(experts, kExperts, 1e-6);
  }
}

}  // namespace
}  // namespace subspace::experts
