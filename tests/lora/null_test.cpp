#include "lora/null.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"

namespace subspace {
namespace {

struct Known {
  double a, x, tail;
};
// Q(a, x) to 17 digits, by mpmath with 40.
const Known kKnown[] = {{0.1, 0.05, 0.22446136454896943},   {0.5, 3, 0.01430587843542964},
                        {1, 1, 0.36787944117144232},        {2.5, 0.2, 0.99532959323587043},
                        {3, 40, 3.5728659287002263e-15},    {19.9, 30, 0.020798954948283259},
                        {20, 5, 0.99999965478641791},       {25, 80, 1.9482335154212098e-13},
                        {137, 137, 0.48863823372179069},    {137, 250, 2.0870268180527827e-15},
                        {1000, 900, 0.99945009773428822},   {1000, 1400, 8.0413254081848296e-30},
                        {10000, 10000, 0.4986701916600448}, {10000, 10700, 3.7881068652590778e-12}};

TEST(GammaTail, AgreesWithFortyDigits) {
  for (const Known& known : kKnown) {
    const double error = std::abs(gamma_tail(known.a, known.x) / known.tail - 1);
    EXPECT_TRUE(error <= 2e-13) << known.a << " " << known.x << ": " << error;
  }
}

TEST(GammaTail, EndsAndNonsense) {
  EXPECT_EQ(gamma_tail(3, 0), 1);
  EXPECT_EQ(gamma_tail(3, std::numeric_limits<double>::infinity()), 0);
  EXPECT_TRUE(std::isnan(gamma_tail(0, 1)));
  EXPECT_TRUE(std::isnan(gamma_tail(2, -1)));
  EXPECT_TRUE(std::isnan(gamma_tail(2, std::nan(""))));
}

/// `count` orthogonal matrices from the Haar measure.
at::Tensor orthogonal(std::int64_t count, std::int64_t d) {
  const auto [q, r] = at::linalg_qr(at::randn({count, d, d}, at::kDouble), "reduced");
  return q * r.diagonal(0, 1, 2).sign().unsqueeze(1);
}

Spectrum2 of(const at::Tensor& p) {
  return {p.trace().item<double>(), p.square().sum().item<double>()};
}

TEST(HaarBand, EndsHaveTheTailsAskedFor) {
  const Spectrum2 spiky = {1, 0.9}, slow = {2, 0.5};
  for (const double share : {0.5, 0.95, 0.999}) {
    const auto [low, high] = haar_band(share, 48, spiky, slow);
    EXPECT_NEAR(haar_p_value(low * low, 48, spiky, slow), (1 + share) / 2, 1e-8);
    EXPECT_NEAR(haar_p_value(high * high, 48, spiky, slow), (1 - share) / 2, 1e-8);
    EXPECT_LT(low, high);
  }
  const auto [low, high] = haar_band(0.9, 16, {16, 16}, spiky);  // isotropic: always 1/d
  EXPECT_NEAR(low, 0.25, 1e-12);
  EXPECT_NEAR(high, 0.25, 1e-12);
  EXPECT_TRUE(std::isnan(haar_band(0.9, 16, {0, 0}, spiky)[0]));
  EXPECT_THROW(haar_band(1, 16, spiky, slow), Error);
}

// P17 and E5: mean and variance of S^2 under random orientation, for two spectra and d = 3.
TEST(HaarNull, MeanAndVarianceAreThoseOfRandomOrientations) {
  at::manual_seed(1);
  struct Spectra {
    std::vector<double> writer, reader;
  };
  std::vector<double> slow, spiky(12, 0), ramp;
  for (int i = 0; i < 12; ++i) {
    slow.push_back(1 / (1.0 + i));
    ramp.push_back(12.0 - i);
  }
  spiky[0] = 1;
  spiky[1] = 0.3;
  constexpr int samples = 20000;
  for (const Spectra& one :
       {Spectra{slow, ramp}, Spectra{spiky, slow}, Spectra{{1, 0, 0}, {0, 2, 1}}}) {
    const auto d = static_cast<std::int64_t>(one.writer.size());
    const at::Tensor w = at::diag(at::tensor(one.writer, at::kDouble));
    const at::Tensor r = at::diag(at::tensor(one.reader, at::kDouble));
    const Spectrum2 sw = of(w), sr = of(r);
    double sum = 0, squares = 0;
    int above = 0;
    const at::Tensor q = orthogonal(samples, d);
    const at::Tensor turned = at::matmul(at::matmul(q, r), q.transpose(1, 2));
    const at::Tensor scores = ((w * turned).sum({1, 2}) / (sw.trace * sr.trace)).contiguous();
    for (int i = 0; i < samples; ++i) {
      const double score = scores.data_ptr<double>()[i];
      sum += score;
      squares += score * score;
      above += haar_p_value(score, d, sw, sr) <= 0.05;
    }
    const double mean = sum / samples, variance = squares / samples - mean * mean;
    const HaarNull null = haar_null(d, sw, sr);
    EXPECT_DOUBLE_EQ(null.mean, 1.0 / static_cast<double>(d));
    EXPECT_TRUE(std::abs(mean - null.mean) <= 4 * std::sqrt(variance / samples)) << mean;
    EXPECT_TRUE(std::abs(variance / null.variance - 1) <= 0.06) << variance / null.variance;
    // The gamma law has the right share of small p-values, roughly.
    if (d > 3) {
      const double share = above / static_cast<double>(samples);
      EXPECT_TRUE(share > 0.04 && share < 0.065) << share;
    }
  }
}

TEST(HaarNull, ProjectionKernelIsTheSpecialCaseOfTwoProjections) {
  // PK = sum cos^2 = tr(P1 P2): mean p1 p2 / d, variance as in the literature.
  const double d = 30, p1 = 4, p2 = 7;
  const HaarNull null = haar_null(30, {p1, p1}, {p2, p2});
  const double scale = p1 * p2;
  EXPECT_NEAR(null.mean * scale, p1 * p2 / d, 1e-12);
  EXPECT_NEAR(null.variance * scale * scale,
              2 * p1 * p2 * (d - p1) * (d - p2) / (d * d * (d - 1) * (d + 2)), 1e-12);
}

TEST(HaarPValue, WithoutAFactorOrWithoutVariance) {
  EXPECT_EQ(haar_p_value(0.5, 10, {0, 0}, {1, 1}), 1);
  const Spectrum2 isotropic{10, 10};
  EXPECT_EQ(haar_p_value(0.1, 10, isotropic, {1, 1}), 1);
  EXPECT_EQ(haar_p_value(0.2, 10, isotropic, {1, 1}), 0);
}

TEST(BenjaminiHochberg, AdjustsAsDefinedAndKeepsTheOrder) {
  const std::vector<double> q = benjamini_hochberg({0.04, 0.01, 0.03, 0.8});
  const double third = 0.04 * 4 / 3;
  EXPECT_NEAR(q[0], third, 1e-15);
  EXPECT_NEAR(q[1], 0.04, 1e-15);
  EXPECT_NEAR(q[2], third, 1e-15);
  EXPECT_NEAR(q[3], 0.8, 1e-15);
  EXPECT_NEAR(benjamini_hochberg({0.01}, 50)[0], 0.5, 1e-15);
  EXPECT_EQ(benjamini_hochberg({0.9}, 50)[0], 1);
  EXPECT_TRUE(benjamini_hochberg({}).empty());
  EXPECT_THROW(benjamini_hochberg({0.5, std::nan("")}), Error);
  EXPECT_THROW(benjamini_hochberg({1.5}), Error);
}

}  // namespace
}  // namespace subspace
