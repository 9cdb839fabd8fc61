// Chances by drawing: against whole orthogonal matrices, the gamma law, and what is known exactly.

#include "lora/null_draws.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "lora/null.h"

namespace subspace {
namespace {

constexpr std::int64_t kDraws = 4000;

at::Tensor spectrum(std::int64_t count, double decay) {
  return at::exp(-decay * at::arange(count, at::kDouble));
}

Spectrum2 summary(const at::Tensor& values) {
  return {values.sum().item<double>(), values.square().sum().item<double>()};
}

/// Sorted S^2 of whole random orthogonal matrices.
at::Tensor brute_scores(std::int64_t d, const at::Tensor& w, const at::Tensor& r) {
  const auto [q, upper] = at::linalg_qr(at::randn({kDraws, d, d}, at::kDouble), "reduced");
  const at::Tensor turned = q * upper.diagonal(0, 1, 2).sign().unsqueeze(1);
  const at::Tensor corner = turned.narrow(1, 0, w.numel()).narrow(2, 0, r.numel()).square();
  return std::get<0>((at::matmul(at::matmul(corner, r), w) / (w.sum() * r.sum())).sort());
}

struct Shape {
  std::int64_t d, a, b;
};

class Draws : public ::testing::TestWithParam<Shape> {};

TEST_P(Draws, HaveTheLawOfWholeOrthogonalMatrices) {
  at::manual_seed(3);
  const auto [d, a, b] = GetParam();
  const at::Tensor w = spectrum(a, 0.2), r = spectrum(b, 0.5);
  const at::Tensor scores = brute_scores(d, w, r);
  for (const double share : {0.5, 0.1, 0.02}) {
    const auto place = static_cast<std::int64_t>((1 - share) * kDraws);
    const double found = haar_p_by_draws(d, {{w, r, scores[place].item<double>()}}, kDraws, 7)[0];
    // Five standard deviations of the difference of two counts.
    const double bound = 5 * std::sqrt(2 * share * (1 - share) / kDraws) + 1.0 / kDraws;
    EXPECT_TRUE(std::abs(found - share) <= bound) << found << " of " << share;
  }
}

// Corners that leave a Wishart matrix, the last that do, and one that does not; both orders.
INSTANTIATE_TEST_SUITE_P(Corners, Draws,
                         ::testing::Values(Shape{24, 6, 5}, Shape{24, 3, 11}, Shape{16, 9, 7},
                                           Shape{16, 9, 8}, Shape{12, 4, 11}, Shape{8, 8, 3}));

TEST(DrawsOf, OrdinarySpectraAgreeWithTheGammaLaw) {
  const std::int64_t d = 96;
  const at::Tensor w = spectrum(16, 0.1), r = spectrum(12, 0.1);
  std::vector<HaarQuestion> questions;
  for (const double lift : {0.9, 1.0, 1.1, 1.2}) questions.push_back({w, r, lift / d});
  const std::vector<double> found = haar_p_by_draws(d, questions, kDraws, 0);
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double law = haar_p_value(questions[i].score_squared, d, summary(w), summary(r));
    EXPECT_TRUE(std::abs(found[i] - law) <= 5 * std::sqrt(0.25 / kDraws)) << found[i] << " " << law;
  }
}

TEST(DrawsOf, AnIsotropicFactorScoreOneOverD) {
  const at::Tensor all = at::ones({10}, at::kDouble), some = spectrum(4, 1);
  const std::vector<double> found =
      haar_p_by_draws(10, {{all, some, 0.1}, {all, some, 0.101}, {some, all, 0.1}}, 99, 1);
  EXPECT_EQ(found[0], 1);
  EXPECT_EQ(found[1], 0.01);
  EXPECT_EQ(found[2], 1);
}

TEST(DrawsOf, OneSeedAreTheSame) {
  const HaarQuestion question = {spectrum(5, 0.3), spectrum(4, 0.3), 0.04};
  const auto first = haar_p_by_draws(30, {question}, 500, 1);
  EXPECT_EQ(first, haar_p_by_draws(30, {question}, 500, 1));
  EXPECT_NE(first, haar_p_by_draws(30, {question}, 500, 2));
}

TEST(DrawsOf, NothingSayNothing) {
  const at::Tensor none = at::empty({0}, at::kDouble), some = spectrum(4, 1);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<double> found =
      haar_p_by_draws(10, {{none, some, 0.1}, {some, none, 0.1}, {some, some, nan}}, 9, 1);
  for (const double one : found) EXPECT_TRUE(std::isnan(one));
  EXPECT_TRUE(haar_p_by_draws(10, {}, 9, 1).empty());
  EXPECT_TRUE(std::isnan(haar_p_by_draws(10, {{none, none, 0.1}}, 9, 1)[0]));
  EXPECT_THROW(haar_p_by_draws(3, {{some, some, 0.1}}, 9, 1), Error);
}

}  // namespace
}  // namespace subspace
