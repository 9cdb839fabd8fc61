// Dense to band: the band's eigenvalues are the matrix's, as LAPACK finds them.
#include "spectrum/band_reduction.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "kernels/band_to_tridiagonal.h"
#include "kernels/tridiagonal_eigenvalues.h"
#include "spectrum/eigenvalues.h"

namespace subspace {
namespace {

at::Tensor matrix(std::int64_t n, std::int64_t rank) {
  at::manual_seed(static_cast<std::uint64_t>(n));
  const at::Tensor x = at::randn({n, rank}, at::kDouble);
  return x.mm(x.t()) / static_cast<double>(n);
}

at::Tensor unpacked(const at::Tensor& band, std::int64_t width) {
  const std::int64_t n = band.size(0);
  at::Tensor a = at::zeros({n, n}, band.options());
  for (std::int64_t i = 0; i <= std::min(width, n - 1); ++i) {
    a.diagonal(-i).copy_(band.select(1, i).narrow(0, 0, n - i));
  }
  return a;
}

class BandReduction : public ::testing::TestWithParam<Multiplier> {};

TEST_P(BandReduction, KeepsTheEigenvaluesInsideTheBand) {
  for (const std::int64_t n : {1, 2, 9, 64, 65, 66, 130, 200, 700}) {
    for (const std::int64_t width : {1, 4, 64}) {
      for (const std::int64_t rank : {n, (n + 1) / 2}) {
        const at::Tensor a = matrix(n, rank);
        const at::Tensor want = at::linalg_eigvalsh(a);
        // What is above the diagonal must not matter.
        const at::Tensor band =
            reduce_to_band(a.tril() + at::full_like(a, 1e300).triu(1), width, GetParam());
        ASSERT_EQ(band.sizes(), (at::IntArrayRef{n, 2 * width}));
        EXPECT_TRUE(band.narrow(1, width, width).narrow(1, 1, width - 1).eq(0).all().item<bool>());
        const at::Tensor found = at::linalg_eigvalsh(unpacked(band, width));
        const double error = (found - want).abs().max().item<double>();
        const double bound = 16 * static_cast<double>(n) * std::numeric_limits<double>::epsilon() *
                             want.abs().max().item<double>();
        EXPECT_TRUE(error <= bound) << n << " width " << width << " rank " << rank << ": " << error;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(By, BandReduction, ::testing::Values(Multiplier::own, Multiplier::library),
                         [](const auto& info) {
                           return info.param == Multiplier::own ? "own" : "library";
                         });

TEST(BandEigenvalues, TheWholeRouteEqualsLapack) {
  const std::int64_t n = 2100;
  ASSERT_EQ(eigen_route(at::kCPU, n), EigenRoute::band);
  for (const double scale : {1.0, 1e-120, 1e120}) {
    const at::Tensor a = matrix(n, n) * scale;
    const at::Tensor kept = a.clone();
    const at::Tensor found = symmetric_eigenvalues(a);
    EXPECT_TRUE(a.equal(kept)) << "the input was written to";
    const at::Tensor want = at::linalg_eigvalsh(a).flip(-1);
    const double error = (found - want).abs().max().item<double>();
    EXPECT_TRUE(error <=
                16 * n * std::numeric_limits<double>::epsilon() * want.abs().max().item<double>())
        << scale << ": " << error;
  }
  EXPECT_TRUE(symmetric_eigenvalues(at::zeros({n, n}, at::kDouble)).eq(0).all().item<bool>());
}

}  // namespace
}  // namespace subspace
