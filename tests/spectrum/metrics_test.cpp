#include "spectrum/metrics.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "spectrum/random_matrix.h"

namespace subspace {
namespace {

const std::vector<double> kTaus = {0.5, 0.99, 1.0};
const std::vector<std::int64_t> kRanks = {0, 1, 2, 9};

TEST(Metrics, FlatSpectrumHasFullRankInEverySense) {
  const std::vector<double> flat(10, 3.0);
  const Metrics m = spectrum_metrics(flat, kTaus, kRanks);
  EXPECT_EQ(m.effective_rank, (std::vector<std::int64_t>{5, 10, 10}));
  EXPECT_NEAR(m.stable_rank, 10, 1e-12);
  EXPECT_NEAR(m.entropy_rank, 10, 1e-12);
  EXPECT_NEAR(m.participation_ratio, 10, 1e-12);
  EXPECT_NEAR(m.condition_number, 1, 1e-12);
  EXPECT_NEAR(m.energy_lost[0], 1, 1e-12);
  EXPECT_NEAR(m.energy_lost[3], 0.1, 1e-12);
}

TEST(Metrics, KnownSpectrum) {
  const std::vector<double> values = {3, 2, 1};  // energies 9, 4, 1 of 14
  const Metrics m = spectrum_metrics(values, kTaus, kRanks);
  EXPECT_EQ(m.effective_rank, (std::vector<std::int64_t>{1, 3, 3}));
  EXPECT_NEAR(m.energy_lost[1], 5.0 / 14, 1e-15);
  EXPECT_NEAR(m.energy_lost[2], 1.0 / 14, 1e-15);
  EXPECT_EQ(m.energy_lost[3], 0);
  EXPECT_NEAR(m.stable_rank, 14.0 / 9, 1e-15);
  EXPECT_NEAR(m.participation_ratio, 196.0 / (81 + 16 + 1), 1e-13);
}

TEST(Metrics, ZeroSpectrumDividesByNothing) {
  const std::vector<double> zero(4, 0.0);
  const Metrics m = spectrum_metrics(zero, kTaus, kRanks);
  EXPECT_EQ(m.effective_rank, (std::vector<std::int64_t>{0, 0, 0}));
  EXPECT_EQ(m.stable_rank, 0);
  EXPECT_TRUE(std::isinf(m.condition_number));
}

TEST(Metrics, RefusesWhatIsNoSpectrum) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const auto& bad : {std::vector<double>{nan}, {1, 2}, {1, -1}, {1, nan}}) {
    EXPECT_THROW(spectrum_metrics(bad, kTaus, kRanks), Error);
  }
}

std::vector<double> sampled(const std::vector<std::int64_t>& dims) {
  at::Tensor product;
  for (std::size_t k = 1; k < dims.size(); ++k) {
    at::Tensor x = at::randn({dims[k - 1], dims[k]}, at::kDouble) / std::sqrt(double(dims[k]));
    product = product.defined() ? at::mm(product, x) : x;
  }
  const at::Tensor values = at::linalg_svdvals(product).contiguous();
  return {values.data_ptr<double>(), values.data_ptr<double>() + values.numel()};
}

class RandomSpectrum : public testing::TestWithParam<std::vector<std::int64_t>> {};

TEST_P(RandomSpectrum, AgreesWithSampling) {
  at::manual_seed(7);
  const auto& dims = GetParam();
  const std::vector<double> expected = random_spectrum(dims);
  const std::vector<double> found = sampled(dims);
  ASSERT_EQ(expected.size(), found.size());
  const std::vector<double> taus = {0.5, 0.9, 0.99, 0.999};
  const Metrics a = spectrum_metrics(expected, taus, {});
  const Metrics b = spectrum_metrics(found, taus, {});
  const double smallest = static_cast<double>(*std::min_element(dims.begin(), dims.end()));
  for (std::size_t t = 0; t < taus.size(); ++t) {
    EXPECT_NEAR(a.effective_rank[t], b.effective_rank[t], 1 + 0.015 * smallest) << taus[t];
  }
  EXPECT_NEAR(a.largest / b.largest, 1, 0.08);
  EXPECT_NEAR(a.entropy_rank / b.entropy_rank, 1, 0.02);
  EXPECT_NEAR(a.participation_ratio / b.participation_ratio, 1, 0.04);
}

INSTANTIATE_TEST_SUITE_P(Chains, RandomSpectrum,
                         testing::Values(std::vector<std::int64_t>{300, 300},
                                         std::vector<std::int64_t>{600, 200},
                                         std::vector<std::int64_t>{150, 900},
                                         std::vector<std::int64_t>{400, 100, 500},
                                         std::vector<std::int64_t>{200, 200, 200},
                                         std::vector<std::int64_t>{128, 512, 256},
                                         std::vector<std::int64_t>{300, 100, 200, 400}));

TEST(RandomSpectrumTest, FirstMomentIsAsStated) {
  const std::vector<std::int64_t> dims = {200, 80, 300};
  double sum = 0;
  for (const double value : random_spectrum(dims)) sum += value * value;
  EXPECT_NEAR(sum, 200, 1e-9);
}

}  // namespace
}  // namespace subspace
