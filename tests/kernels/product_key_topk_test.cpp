#include "kernels/product_key_topk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <tuple>

#include "kernels/on_backend.h"

namespace subspace::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Winners {
  std::vector<float> scores;
  std::vector<std::int64_t> index;
  std::vector<float> weights;
};

class ProductKeyTopkOn : public ::testing::TestWithParam<std::tuple<Backend, Element>> {
 protected:
  void SetUp() override {
    if (const std::string why = missing_for(backend()); !why.empty()) GTEST_SKIP() << why;
  }
  Backend backend() const { return std::get<0>(GetParam()); }
  Element element() const { return std::get<1>(GetParam()); }

  Winners run(const std::vector<float>& s1, const std::vector<float>& s2, std::int64_t rows,
              std::int64_t side, std::int64_t k) const {
    Buffer<std::uint8_t> first(backend(), encode(element(), {s1.begin(), s1.end()}));
    Buffer<std::uint8_t> second(backend(), encode(element(), {s2.begin(), s2.end()}));
    Buffer<float> scores(backend(), rows * k);
    Buffer<std::int64_t> index(backend(), rows * k);
    Buffer<float> weights(backend(), rows * k);
    const ProductKeyTopk p{.s1 = first.data(),
                           .s2 = second.data(),
                           .scores = scores.data(),
                           .index = index.data(),
                           .weights = weights.data(),
                           .rows = rows,
                           .side = side,
                           .k = k,
                           .element = element()};
#ifdef SUBSPACE_CUDA
    if (backend() == Backend::cuda) {
      product_key_topk_cuda(p, nullptr);
      return {scores.values(), index.values(), weights.values()};
    }
#endif
    product_key_topk_cpu(p, 2);
    return {scores.values(), index.values(), weights.values()};
  }

  /// Values the element type holds.
  std::vector<float> stored(std::vector<float> values) const {
    return floats(decode(element(), encode(element(), {values.begin(), values.end()})));
  }
  std::vector<float> random(std::int64_t count, std::uint64_t seed) const {
    return floats(normals(element(), count, 1, seed));
  }
  /// Few different values: ties everywhere.
  std::vector<float> levels(std::int64_t count, int number, std::uint64_t seed) const {
    Random random(seed, 3);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) {
      value = 0.25f * static_cast<float>(random.word() % static_cast<unsigned>(number)) - 1;
    }
    return values;
  }

  void expect_brute_force(const std::vector<float>& s1, const std::vector<float>& s2,
                          std::int64_t rows, std::int64_t side, std::int64_t k) const {
    SCOPED_TRACE(::testing::Message() << "side " << side << ", k " << k);
    const Winners got = run(s1, s2, rows, side, k);
    std::vector<float> scores(static_cast<std::size_t>(rows * k));
    std::vector<std::int64_t> index(scores.size());
    product_key_topk_reference(s1.data(), s2.data(), rows, side, k, scores.data(), index.data());
    ASSERT_EQ(got.index, index);
    ASSERT_EQ(got.scores, scores);
  }
};

TEST_P(ProductKeyTopkOn, EqualsBruteForceOverAllPairs) {
  std::uint64_t seed = 0;
  for (const std::int64_t side : {1, 2, 7, 16, 31, 64, 100, 200, 512}) {
    for (const std::int64_t k : {1, 2, 5, 16, 32, 33, 64}) {
      if (k > side) continue;
      const std::int64_t rows = side > 200 ? 3 : 9;
      ++seed;
      expect_brute_force(random(rows * side, seed), random(rows * side, 1000 + seed), rows, side,
                         k);
    }
  }
}

TEST_P(ProductKeyTopkOn, LargeSides) {
  for (const std::int64_t side : {700, 1024, 1500}) {
    expect_brute_force(random(2 * side, 5), random(2 * side, 6), 2, side, 16);
  }
}

TEST_P(ProductKeyTopkOn, EqualsBruteForceWithManyTies) {
  std::uint64_t seed = 0;
  for (const int number : {1, 2, 3, 8, 40}) {
    for (const std::int64_t side : {5, 16, 64, 130, 300}) {
      for (const std::int64_t k : {1, 4, 16, 64}) {
        if (k > side) continue;
        ++seed;
        expect_brute_force(levels(4 * side, number, seed), levels(4 * side, number, 500 + seed), 4,
                           side, k);
      }
    }
  }
}

TEST_P(ProductKeyTopkOn, WithExactSumsItIsPlainBruteForceOverFloats) {
  // Quarters: no sum is rounded, and "sum descending, then index ascending" needs no exact sums.
  const std::int64_t side = 48;
  const std::int64_t k = 16;
  const auto s1 = levels(side, 6, 1);
  const auto s2 = levels(side, 6, 2);
  std::vector<std::int64_t> order(static_cast<std::size_t>(side * side));
  std::iota(order.begin(), order.end(), 0);
  const auto sum = [&](std::int64_t i) {
    return s1[static_cast<std::size_t>(i / side)] + s2[static_cast<std::size_t>(i % side)];
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return sum(a) > sum(b); });
  order.resize(static_cast<std::size_t>(k));
  EXPECT_EQ(run(s1, s2, 1, side, k).index, order);
}

TEST_P(ProductKeyTopkOn, SumsThatOnlyRoundingMakesEqual) {
  // One side is so large that every sum rounds to it: the exact sums decide who wins, and the
  // winners, now of one score, stand in order of index.
  const std::int64_t side = 40;
  std::vector<float> s1;
  for (std::int64_t i = 0; i < side; ++i) s1.push_back(static_cast<float>(i) / 64);
  const std::vector<float> s2(static_cast<std::size_t>(side), 1e8f);
  const auto a = stored(s1);
  const auto b = stored(s2);
  expect_brute_force(a, b, 1, side, 16);
  const Winners got = run(a, b, 1, side, 16);
  for (std::size_t j = 0; j < 16; ++j) {
    EXPECT_EQ(got.index[j], 39 * side + static_cast<std::int64_t>(j)) << j;
    EXPECT_EQ(got.scores[j], b[0] + 39.0f / 64);
  }
  // Magnitudes mixed at random, so that ties by rounding stand beside sums that differ.
  std::uint64_t seed = 70;
  for (int round = 0; round < 20; ++round) {
    auto first = random(64, ++seed);
    auto second = random(64, ++seed);
    for (std::size_t i = 0; i < 64; ++i) {
      first[i] = std::ldexp(first[i], static_cast<int>(i % 7) * 6 - 20);
      second[i] = std::ldexp(second[i], static_cast<int>(i % 5) * 8 - 20);
    }
    expect_brute_force(first, second, 1, 64, 16);
    expect_brute_force(first, second, 1, 64, 64);
  }
}

TEST_P(ProductKeyTopkOn, SignedZerosTie) {
  const std::vector<float> s1 = {-0.0f, 0.0f, -1, 0.0f};
  const std::vector<float> s2 = {0.0f, -0.0f, -2, -0.0f};
  EXPECT_EQ(run(s1, s2, 1, 4, 4).index, (std::vector<std::int64_t>{0, 1, 3, 4}));
}

TEST_P(ProductKeyTopkOn, NanComesFirstAndMinusInfinityMasks) {
  const std::int64_t side = 20;
  auto s1 = random(side, 1);
  const auto s2 = random(side, 2);
  s1[7] = kNan;
  const Winners nan = run(s1, s2, 1, side, 8);
  EXPECT_TRUE(std::isnan(nan.scores[0]));
  EXPECT_EQ(nan.index[0] / side, 7);
  EXPECT_EQ(std::set<std::int64_t>(nan.index.begin(), nan.index.end()).size(), 8u);

  // Nor is it lost at the first place before more equal values than a GPU looks at together.
  std::vector<float> equal(512, 0.0f);
  equal[0] = kNan;
  const Winners first = run(equal, std::vector<float>(512, 0.0f), 1, 512, 4);
  EXPECT_TRUE(std::isnan(first.scores[0]));
  EXPECT_EQ(first.index[0] / 512, 0);
  EXPECT_EQ(std::set<std::int64_t>(first.index.begin(), first.index.end()).size(), 4u);

  // Two experts a side are left: four finite winners, then masked ones.
  std::vector<float> masked(static_cast<std::size_t>(side), -kInfinity);
  masked[3] = 1;
  masked[11] = 2;
  const Winners got = run(masked, masked, 1, side, 8);
  EXPECT_EQ(
      std::vector<std::int64_t>(got.index.begin(), got.index.begin() + 4),
      (std::vector<std::int64_t>{11 * side + 11, 3 * side + 11, 11 * side + 3, 3 * side + 3}));
  for (std::size_t j = 4; j < 8; ++j) EXPECT_EQ(got.scores[j], -kInfinity);
  for (const std::int64_t index : got.index) EXPECT_TRUE(index >= 0 && index < side * side);
  // An infinity of the other sign does not turn a mask into NaN.
  masked[11] = kInfinity;
  EXPECT_EQ(run(masked, masked, 1, side, 4).scores,
            (std::vector<float>{kInfinity, kInfinity, kInfinity, 2}));
}

TEST_P(ProductKeyTopkOn, WeightsAreTheSoftmaxOfTheWinners) {
  const std::int64_t side = 64;
  for (const std::int64_t k : {1, 16, 50}) {
    const std::int64_t rows = 11;
    const Winners got = run(random(rows * side, 1), random(rows * side, 2), rows, side, k);
    for (std::int64_t row = 0; row < rows; ++row) {
      double sum = 0;
      for (std::int64_t j = 0; j < k; ++j) {
        sum += std::exp(double{got.scores[static_cast<std::size_t>(row * k + j)]});
      }
      for (std::int64_t j = 0; j < k; ++j) {
        const auto at = static_cast<std::size_t>(row * k + j);
        // exp's error grows with its argument, at most 10 in size here; then k additions.
        const double want = std::exp(double{got.scores[at]}) / sum;
        EXPECT_FALSE(!(std::abs(got.weights[at] - want) <=
                       want * static_cast<double>(k + 24) * std::ldexp(1, -24)));
      }
    }
  }
}

TEST_P(ProductKeyTopkOn, NoRows) { EXPECT_TRUE(run({}, {}, 0, 16, 4).index.empty()); }

struct SideGrads {
  Doubles s1;
  Doubles s2;
};

TEST_P(ProductKeyTopkOn, BackwardScattersToBothSides) {
  struct Shape {
    std::int64_t side, k;
  };
  for (const Shape& s :
       {Shape{1, 1}, Shape{6, 5}, Shape{33, 16}, Shape{512, 16}, Shape{64, 64}, Shape{1100, 40}}) {
    for (const bool softmax : {false, true}) {
      const std::int64_t rows = 7;
      const Winners winners =
          run(random(rows * s.side, 3), random(rows * s.side, 4), rows, s.side, s.k);
      const auto upstream = floats(normals(Element::f32, rows * s.k, 1, 5));
      SideGrads want{Doubles(static_cast<std::size_t>(rows * s.side)), {}};
      want.s2 = want.s1;
      SideGrads size = want;  // sums of sizes, which rounding is relative to
      for (std::int64_t row = 0; row < rows; ++row) {
        double inner = 0;
        double inner_size = 0;
        for (std::int64_t j = 0; j < s.k; ++j) {
          const auto at = static_cast<std::size_t>(row * s.k + j);
          inner += double{winners.weights[at]} * upstream[at];
          inner_size += std::abs(double{winners.weights[at]} * upstream[at]);
        }
        for (std::int64_t j = 0; j < s.k; ++j) {
          const auto at = static_cast<std::size_t>(row * s.k + j);
          const double w = winners.weights[at];
          const double grad = softmax ? w * (upstream[at] - inner) : upstream[at];
          const double grad_size =
              softmax ? w * (std::abs(upstream[at]) + inner_size) : std::abs(upstream[at]);
          const auto a = static_cast<std::size_t>(row * s.side + winners.index[at] / s.side);
          const auto b = static_cast<std::size_t>(row * s.side + winners.index[at] % s.side);
          want.s1[a] += grad;
          want.s2[b] += grad;
          size.s1[a] += grad_size;
          size.s2[b] += grad_size;
        }
      }
      const std::int64_t bytes = rows * s.side * element_bytes(element());
      Buffer<std::uint8_t> grad_s1(backend(), bytes);
      Buffer<std::uint8_t> grad_s2(backend(), bytes);
      Buffer<float> grad(backend(), upstream);
      Buffer<std::int64_t> index(backend(), winners.index);
      Buffer<float> weights(backend(), winners.weights);
      const ProductKeyTopkGrad p{.grad = grad.data(),
                                 .index = index.data(),
                                 .weights = softmax ? weights.data() : nullptr,
                                 .grad_s1 = grad_s1.data(),
                                 .grad_s2 = grad_s2.data(),
                                 .rows = rows,
                                 .side = s.side,
                                 .k = s.k,
                                 .element = element()};
#ifdef SUBSPACE_CUDA
      if (backend() == Backend::cuda) product_key_topk_grad_cuda(p, nullptr);
#endif
      if (backend() != Backend::cuda) product_key_topk_grad_cpu(p, 2);
      const double stored = std::ldexp(1, element() == Element::f32 ? -24 : -8);
      const double products = static_cast<double>(s.k + 4) * std::ldexp(1, -24);
      for (std::size_t i = 0; i < want.s1.size(); ++i) {
        size.s1[i] = products * size.s1[i] + stored * (std::abs(want.s1[i]) + size.s1[i]);
        size.s2[i] = products * size.s2[i] + stored * (std::abs(want.s2[i]) + size.s2[i]);
      }
      SCOPED_TRACE(::testing::Message() << s.side << " " << s.k << " " << softmax);
      expect_within(decode(element(), grad_s1.values()), want.s1, size.s1, "grad_s1");
      expect_within(decode(element(), grad_s2.values()), want.s2, size.s2, "grad_s2");
    }
  }
}

TEST_P(ProductKeyTopkOn, BackwardOfAnIndexOutOfRangeIsNanInItsRowAlone) {
  constexpr std::int64_t kSide = 40, kRows = 5, kWinners = 3;
  // The last one's lower half is an index in range.
  for (const std::int64_t wrong : {kSide * kSide, std::int64_t{-1}, (std::int64_t{1} << 32) + 7}) {
    std::vector<std::int64_t> winners(kRows * kWinners);
    std::iota(winners.begin(), winners.end(), 11);
    winners[2 * kWinners + 1] = wrong;
    const std::int64_t bytes = kRows * kSide * element_bytes(element());
    Buffer<std::uint8_t> grad_s1(backend(), bytes);
    Buffer<std::uint8_t> grad_s2(backend(), bytes);
    Buffer<float> grad(backend(), std::vector<float>(winners.size(), 1));
    Buffer<std::int64_t> index(backend(), winners);
    const ProductKeyTopkGrad p{.grad = grad.data(),
                               .index = index.data(),
                               .grad_s1 = grad_s1.data(),
                               .grad_s2 = grad_s2.data(),
                               .rows = kRows,
                               .side = kSide,
                               .k = kWinners,
                               .element = element()};
#ifdef SUBSPACE_CUDA
    if (backend() == Backend::cuda) product_key_topk_grad_cuda(p, nullptr);
#endif
    if (backend() != Backend::cuda) product_key_topk_grad_cpu(p, 2);
    for (auto* side : {&grad_s1, &grad_s2}) {
      const Doubles found = decode(element(), side->values());
      for (std::size_t i = 0; i < found.size(); ++i) {
        EXPECT_EQ(std::isnan(found[i]), i / kSide == 2) << wrong << " at " << i;
      }
    }
  }
}

std::vector<Backend> topk_backends() {
  auto all = backends();
  all.erase(std::find(all.begin(), all.end(), Backend::avx2));  // there is one version for the CPU
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, ProductKeyTopkOn,
                         ::testing::Combine(::testing::ValuesIn(topk_backends()),
                                            ::testing::Values(Element::f32, Element::bf16)),
                         [](const auto& info) {
                           return std::string(name_of(std::get<0>(info.param))) +
                                  (std::get<1>(info.param) == Element::f32 ? "_f32" : "_bf16");
                         });

}  // namespace
}  // namespace subspace::kernels
