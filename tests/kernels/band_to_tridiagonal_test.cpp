// Band matrices to tridiagonal form: invariants, and eigenvalues against the slow route's.
#include "kernels/band_to_tridiagonal.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/tridiagonal_eigenvalues.h"

namespace subspace::kernels {
namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();

struct Tridiagonal {
  std::vector<double> d, e;
};

std::vector<double> random_band(std::int64_t n, std::int64_t width, double fill = 1) {
  std::vector<double> band(static_cast<std::size_t>(n * 2 * width));
  Random random(static_cast<std::uint64_t>(n), static_cast<std::uint64_t>(width));
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t i = 0; i <= std::min(width, n - 1 - j); ++i) {
      const double x = random.normal();
      if (random.uniform() < fill) band[static_cast<std::size_t>(j * 2 * width + i)] = x;
    }
  }
  return band;
}

template <typename Reduce>
Tridiagonal reduced(std::vector<double> band, std::int64_t width, Reduce reduce) {
  const auto n = static_cast<std::int64_t>(band.size()) / (2 * width);
  Tridiagonal t{std::vector<double>(static_cast<std::size_t>(n), std::nan("")),
                std::vector<double>(static_cast<std::size_t>(std::max<std::int64_t>(n - 1, 0)),
                                    std::nan(""))};
  reduce({.band = band.data(), .d = t.d.data(), .e = t.e.data(), .n = n, .width = width});
  return t;
}

std::vector<double> eigenvalues(Tridiagonal t) {
  EXPECT_TRUE(
      tridiagonal_eigenvalues(t.d.data(), t.e.data(), static_cast<std::int64_t>(t.d.size())));
  std::sort(t.d.begin(), t.d.end());
  return t.d;
}

class BandToTridiagonalIsa : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!isa_available(GetParam())) GTEST_SKIP() << "this processor lacks the instruction set";
  }
  auto kernel(int threads) const {
    return [=, isa = GetParam()](const BandToTridiagonal& p) {
      band_to_tridiagonal_cpu(p, threads, isa);
    };
  }
};

TEST_P(BandToTridiagonalIsa, KeepsTheEigenvalues) {
  for (const std::int64_t n : {1, 2, 3, 4, 7, 30, 65, 131, 200}) {
    for (const std::int64_t width : {1, 2, 3, 4, 8, 13, 16, 64}) {
      for (const double fill : {1.0, 0.1, 0.0}) {
        const std::vector<double> band = random_band(n, width, fill);
        const auto want = eigenvalues(reduced(band, width, band_to_tridiagonal_reference));
        const auto found = eigenvalues(reduced(band, width, kernel(2)));
        const double norm = std::max({std::abs(want.front()), std::abs(want.back()), 1e-300});
        for (std::size_t i = 0; i < want.size(); ++i) {
          ASSERT_TRUE(std::abs(found[i] - want[i]) <= 16 * static_cast<double>(n) * kEps * norm)
              << "n " << n << " width " << width << " fill " << fill << " value " << i << ": "
              << found[i] << " for " << want[i];
        }
      }
    }
  }
}

TEST_P(BandToTridiagonalIsa, KeepsTraceAndNorm) {
  const std::int64_t n = 500, width = 32;
  const std::vector<double> band = random_band(n, width);
  double trace = 0, squares = 0;
  for (std::int64_t j = 0; j < n; ++j) {
    trace += band[static_cast<std::size_t>(j * 2 * width)];
    for (std::int64_t i = 0; i < 2 * width; ++i) {
      const double x = band[static_cast<std::size_t>(j * 2 * width + i)];
      squares += (i == 0 ? 1 : 2) * x * x;
    }
  }
  const Tridiagonal t = reduced(band, width, kernel(1));
  double trace_t = 0, squares_t = 0;
  for (const double x : t.d) trace_t += x, squares_t += x * x;
  for (const double x : t.e) squares_t += 2 * x * x;
  EXPECT_TRUE(std::abs(trace_t - trace) <= 16 * n * kEps * std::sqrt(squares));
  EXPECT_TRUE(std::abs(squares_t - squares) <= 16 * n * kEps * squares);
}

TEST_P(BandToTridiagonalIsa, ThreadsChangeNoBit) {
  const std::int64_t n = 1200, width = 8;
  const std::vector<double> band = random_band(n, width);
  const Tridiagonal one = reduced(band, width, kernel(1));
  for (const int threads : {2, 3, 8}) {
    const Tridiagonal many = reduced(band, width, kernel(threads));
    EXPECT_EQ(many.d, one.d) << threads;
    EXPECT_EQ(many.e, one.e) << threads;
  }
}

INSTANTIATE_TEST_SUITE_P(Each, BandToTridiagonalIsa, ::testing::Values(Isa::portable, Isa::avx2),
                         [](const auto& info) {
                           return std::string(info.param == Isa::avx2 ? "avx2" : "portable");
                         });

}  // namespace
}  // namespace subspace::kernels
