// Whole modules against the library's decomposition of both matrices.

#include "lora/module_intruders.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace subspace {
namespace {

constexpr std::array kModuleCosines = {0.3, 0.5, 0.7, 0.9};

at::Tensor gauss_matrix(std::vector<std::int64_t> shape) { return at::randn(shape, at::kDouble); }

at::Tensor random_columns(std::int64_t rows, std::int64_t columns) {
  return std::get<0>(at::linalg_qr(gauss_matrix({rows, columns})));
}

/// Singular values that fall by a factor, none near another.
at::Tensor falling_values(std::int64_t n, double by = 0.97) {
  return at::pow(by, at::arange(n, at::kDouble));
}

at::Tensor matrix_with(std::int64_t out, std::int64_t in, const at::Tensor& values) {
  const std::int64_t n = values.size(0);
  return at::matmul(random_columns(out, n) * values, random_columns(in, n).t());
}

struct Published {
  at::Tensor similarity, nearest;  // [k]
  at::Tensor values;
};

/// The published script: both matrices decomposed, all cosines, their maxima; one side.
Published published(const at::Tensor& w, const at::Tensor& adapted, std::int64_t k, bool output) {
  const auto [u, s, vh] = at::linalg_svd(w, false);
  const auto [u1, s1, vh1] = at::linalg_svd(adapted, false);
  const std::int64_t n = (s > 1e-12 * s[0]).sum().item<std::int64_t>();
  const at::Tensor base = output ? u.narrow(1, 0, n) : vh.narrow(0, 0, n).t();
  const at::Tensor own = output ? u1.narrow(1, 0, k) : vh1.narrow(0, 0, k).t();
  const auto [most, which] = at::matmul(base.t(), own).abs().max(0);
  return {most, which, s1.narrow(0, 0, k)};
}

void expect_within(const at::Tensor& found, const at::Tensor& wanted, double bound,
                   const char* what) {
  ASSERT_EQ(found.sizes(), wanted.sizes()) << what;
  const double error = (found - wanted).abs().max().item<double>();
  EXPECT_TRUE(error <= bound) << what << ": " << error;
}

struct ModuleCase {
  std::int64_t out, in, rank;
  double size;  // of the update against the base's largest value
  IntruderRoute route;
};

class Modules : public ::testing::TestWithParam<ModuleCase> {};

TEST_P(Modules, AgreeWithTwoDecompositions) {
  const auto [out, in, rank, size, route] = GetParam();
  at::manual_seed(11);
  const at::Tensor w = matrix_with(out, in, falling_values(std::min(out, in)));
  const LowRank change{gauss_matrix({out, rank}) * (size / std::sqrt(out)),
                       gauss_matrix({in, rank}) / std::sqrt(in)};
  const ModuleIntruders found = ModuleSpectrum(w, 10, route).with(change);
  const at::Tensor adapted = w + change.dense();
  const std::int64_t k = std::min<std::int64_t>({10, out, in});
  for (const bool output : {true, false}) {
    const Published wanted = published(w, adapted, k, output);
    const IntruderSide& side = output ? found.output : found.input;
    expect_within(found.adapted, wanted.values, 1e-12, "values");
    expect_within(side.similarity, wanted.similarity, 1e-8, output ? "output" : "input");
    EXPECT_TRUE(at::equal(side.nearest, wanted.nearest));
    for (const double cosine : kModuleCosines) {
      EXPECT_EQ(intruders(side, cosine), (wanted.similarity < cosine).sum().item<std::int64_t>());
    }
  }
  EXPECT_TRUE(std::abs(found.fro_base - w.norm().item<double>()) <= 1e-12);
  EXPECT_TRUE(std::abs(found.fro_delta - change.dense().norm().item<double>()) <= 1e-12);
  // The same change given as a matrix.
  const ModuleIntruders again = ModuleSpectrum(w, 10, route).with(adapted);
  expect_within(again.output.similarity, found.output.similarity, 1e-8, "as a matrix");
  expect_within(again.input.inside, found.input.inside, 1e-8, "inside");
  EXPECT_FALSE(again.delta.defined());
}

constexpr auto kSearch = IntruderRoute::search, kDense = IntruderRoute::dense,
               kAuto = IntruderRoute::automatic;
INSTANTIATE_TEST_SUITE_P(
    Shapes, Modules,
    ::testing::Values(ModuleCase{60, 60, 4, 0.5, kSearch}, ModuleCase{60, 60, 4, 0.5, kDense},
                      ModuleCase{90, 40, 3, 2, kSearch}, ModuleCase{40, 90, 3, 2, kSearch},
                      ModuleCase{90, 40, 3, 2, kDense}, ModuleCase{40, 90, 3, 1e-3, kSearch},
                      ModuleCase{6, 50, 2, 1, kSearch}, ModuleCase{50, 6, 2, 1, kAuto},
                      ModuleCase{30, 30, 40, 0.3, kSearch}, ModuleCase{220, 200, 8, 0.7, kAuto},
                      ModuleCase{200, 330, 16, 3, kAuto}));

TEST(ModuleIntruders, NoChangeHasNone) {
  at::manual_seed(2);
  for (const auto& [out, in] : {std::pair{48, 48}, {200, 180}, {30, 70}}) {
    const at::Tensor w = gauss_matrix({out, in});
    const ModuleSpectrum base(w);
    const LowRank nothing{at::zeros({out, 4}, at::kDouble), gauss_matrix({in, 4})};
    for (const ModuleIntruders& found : {base.with(nothing), base.with(w)}) {
      for (const IntruderSide* side : {&found.output, &found.input}) {
        EXPECT_EQ(intruders(*side, 1 - 1e-9), 0);
        EXPECT_TRUE(at::equal(side->nearest, at::arange(10)));
      }
      expect_within(found.adapted, found.base, 1e-12 * found.base[0].item<double>(), "values");
      EXPECT_EQ(found.fro_delta, 0);
    }
  }
}

TEST(ModuleIntruders, APlantedDirectionIsOne) {
  at::manual_seed(3);
  for (const auto route : {kSearch, kDense}) {
    const std::int64_t d = 240;
    const at::Tensor w = matrix_with(d, d, falling_values(d, 0.99));
    // Even parts of all directions of the base: cosine 1/sqrt(d) with each, where it is strongest.
    const at::Tensor u = std::get<0>(at::linalg_svd(w)).sum(1, true) / std::sqrt(d);
    const LowRank change{u * 5, random_columns(d, 1)};
    const ModuleIntruders found = ModuleSpectrum(w, 10, route).with(change);
    EXPECT_EQ(intruders(found.output, 0.5), 1);
    EXPECT_TRUE(found.output.similarity[0].item<double>() < 0.15);
    EXPECT_TRUE(found.output.similarity[1].item<double>() > 0.9);
    // In a base of full rank no direction is outside: the span says nothing of a whole module.
    expect_within(found.output.inside, at::ones({10}, at::kDouble), 1e-12, "inside");
  }
}

TEST(ModuleIntruders, DirectionsWithoutStrengthAreNotTheBases) {
  at::manual_seed(4);
  const std::int64_t d = 80, rank = 12;
  const at::Tensor u = random_columns(d, rank + 1), v = random_columns(d, rank + 1);
  const at::Tensor w =
      at::matmul(u.narrow(1, 0, rank) * falling_values(rank, 0.8), v.narrow(1, 0, rank).t());
  const LowRank change{u.narrow(1, rank, 1) * 3, v.narrow(1, rank, 1)};
  for (const auto route : {kSearch, kDense}) {
    const ModuleIntruders found = ModuleSpectrum(w, 20, route).with(change);
    EXPECT_EQ(found.base_rank, rank);
    // Twelve old directions and the new one; beyond them there is none to speak of.
    EXPECT_EQ(found.adapted.size(0), rank + 1);
    for (const IntruderSide* side : {&found.output, &found.input}) {
      EXPECT_EQ(intruders(*side, 0.5), 1);
      EXPECT_TRUE(side->similarity[0].item<double>() <= 1e-12);
      EXPECT_TRUE(side->inside[0].item<double>() <= 1e-12);
      EXPECT_EQ(intruders(*side, 1 - 1e-9), 1);
    }
  }
  const ModuleIntruders dense = ModuleSpectrum(w, 20).with(w + change.dense());
  EXPECT_EQ(dense.adapted.size(0), rank + 1);
  EXPECT_EQ(intruders(dense.output, 0.5), 1);
}

TEST(ModuleIntruders, ABaseOfZerosHasNoDirections) {
  at::manual_seed(5);
  const LowRank change{gauss_matrix({20, 3}), gauss_matrix({30, 3})};
  const ModuleIntruders found = ModuleSpectrum(at::zeros({20, 30}, at::kDouble)).with(change);
  EXPECT_EQ(found.base_rank, 0);
  EXPECT_EQ(found.adapted.size(0), 3);
  EXPECT_EQ(intruders(found.output, 0.3), 3);
  EXPECT_TRUE(at::equal(found.output.nearest, at::full({3}, -1, at::kLong)));
}

TEST(ModuleIntruders, EqualValuesAreOneGroup) {
  at::manual_seed(6);
  const std::int64_t d = 60, same = 8;
  const at::Tensor values =
      at::cat({at::full({same}, 2, at::kDouble), falling_values(d - same, 0.9)});
  const at::Tensor u = random_columns(d, d), v = random_columns(d, d);
  const at::Tensor w = at::matmul(u * values, v.t());
  // Stronger along a mixture of the eight: in every basis of their space the mixture is new to
  // single vectors, but not to the space.
  const at::Tensor mix = at::ones({same, 1}, at::kDouble) / std::sqrt(same);
  const LowRank change{at::matmul(u.narrow(1, 0, same), mix) * 0.5,
                       at::matmul(v.narrow(1, 0, same), mix)};
  const ModuleIntruders found = ModuleSpectrum(w).with(change);
  EXPECT_EQ(intruders(found.output, 1 - 1e-9), 0);
  EXPECT_EQ(intruders(found.input, 1 - 1e-9), 0);
  for (std::int64_t j = 0; j < same; ++j)
    EXPECT_EQ(found.output.nearest[j].item<std::int64_t>(), 0);
  for (std::int64_t j = same; j < 10; ++j)
    EXPECT_EQ(found.output.nearest[j].item<std::int64_t>(), j);
  // Single vectors do not hold it, in the basis that was planted.
  const auto [u1, s1, v1] = at::linalg_svd(w + change.dense());
  EXPECT_TRUE(at::matmul(u.t(), u1.narrow(1, 0, 1)).abs().max().item<double>() < 0.5);
}

TEST(ModuleIntruders, AFlatSpectrumHasFalseOnesByVectors) {
  // Values apart by more than rounding and by less than the change: vectors mix freely, and the
  // published count takes the mixtures for new. It is what is asked for; the docs say so.
  at::manual_seed(7);
  const std::int64_t d = 100;
  const at::Tensor values = 1 + 1e-3 * at::linspace(1, 0, d, at::kDouble);
  const at::Tensor w = matrix_with(d, d, values);
  const LowRank change{gauss_matrix({d, 20}) * 0.003, gauss_matrix({d, 20}) * 0.1};
  EXPECT_TRUE(intruders(ModuleSpectrum(w).with(change).output, 0.5) >= 5);
}

TEST(RandomUpdates, AreNewWhereTheyAreStrongAndLostWhereTheyAreWeak) {
  at::manual_seed(8);
  const std::int64_t d = 200;
  const ModuleSpectrum base(matrix_with(d, d + 20, falling_values(d, 0.9)));
  const auto strong = base.random(at::full({4}, 20, at::kDouble), kModuleCosines, 3, 1);
  const auto weak = base.random(at::full({4}, 1e-5, at::kDouble), kModuleCosines, 3, 1);
  for (const RandomSide* side : {&strong.output, &strong.input}) EXPECT_EQ(side->intruders[1], 4);
  for (const RandomSide* side : {&weak.output, &weak.input}) EXPECT_EQ(side->intruders[3], 0);
  const auto again = base.random(at::full({4}, 20, at::kDouble), kModuleCosines, 3, 1);
  EXPECT_TRUE(at::equal(again.input.similarity, strong.input.similarity));
}

TEST(RandomUpdates, HaveTheLawOfDenseOnes) {
  at::manual_seed(9);
  const std::int64_t out = 70, in = 50, draws = 300;
  const at::Tensor w = matrix_with(out, in, falling_values(in, 0.9));
  const at::Tensor delta = at::full({3}, 0.6, at::kDouble);
  const RandomUpdates found = ModuleSpectrum(w).random(delta, kModuleCosines, draws, 5);
  at::Tensor sum = at::zeros({10}, at::kDouble), squares = at::zeros({10}, at::kDouble);
  for (std::int64_t i = 0; i < draws; ++i) {
    const at::Tensor adapted =
        w + at::matmul(random_columns(out, 3) * delta, random_columns(in, 3).t());
    const at::Tensor one = published(w, adapted, 10, true).similarity;
    sum += one;
    squares += one.square();
  }
  const at::Tensor mean = sum / draws, deviation = (squares / draws - mean.square()).sqrt();
  const at::Tensor bound = 5 * deviation * std::sqrt(2.0 / draws) + 1e-12;
  EXPECT_TRUE(((found.output.similarity - mean).abs() <= bound).all().item<bool>());
}

TEST(ModuleIntruders, BadInputIsNamed) {
  const at::Tensor w = gauss_matrix({4, 6});
  const auto code = [](auto what) {
    try {
      what();
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::Internal;
  };
  EXPECT_EQ(code([&] { ModuleSpectrum(gauss_matrix({4})); }), ErrorCode::InvalidShape);
  EXPECT_EQ(code([&] {
              ModuleSpectrum(w).with(LowRank{gauss_matrix({6, 2}), gauss_matrix({4, 2})});
            }),
            ErrorCode::InvalidShape);
  EXPECT_EQ(code([&] { ModuleSpectrum(w).with(gauss_matrix({6, 4})); }), ErrorCode::InvalidShape);
  at::Tensor broken = w.clone();
  broken[1][2] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(code([&] { ModuleSpectrum{broken}; }), ErrorCode::NotFinite);
  EXPECT_EQ(code([&] { ModuleSpectrum(w).with(broken); }), ErrorCode::NotFinite);
  EXPECT_EQ(code([&] {
              ModuleSpectrum(w).with(LowRank{broken, gauss_matrix({6, 6})});
            }),
            ErrorCode::NotFinite);
}

}  // namespace
}  // namespace subspace
