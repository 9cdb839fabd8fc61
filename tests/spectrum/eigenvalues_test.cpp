// Both routes (own kernels, LAPACK) against LAPACK's answer, either side of the switch.
#include "spectrum/eigenvalues.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"

namespace subspace {
namespace {

at::Tensor random_gram(std::int64_t batch, std::int64_t n, std::int64_t rank) {
  at::manual_seed(static_cast<std::uint64_t>(n));
  const at::Tensor x = at::randn({batch, n, rank}, at::kDouble);
  return x.matmul(x.transpose(1, 2));
}

double tolerance(const at::Tensor& a) {
  return 16 * static_cast<double>(a.size(-1)) * std::numeric_limits<double>::epsilon() *
         a.abs().sum(-1).max().item<double>();
}

TEST(Eigenvalues, EqualThoseOfLapackOnEitherSideOfTheSwitch) {
  EXPECT_EQ(eigen_route(at::kCPU, 0), EigenRoute::library);
  EXPECT_EQ(eigen_route(at::kCPU, 1), EigenRoute::own);
  EXPECT_EQ(eigen_route(at::kCPU, 128), EigenRoute::own);
  EXPECT_EQ(eigen_route(at::kCPU, 129), EigenRoute::library);
  EXPECT_EQ(eigen_route(at::kCPU, 7168), EigenRoute::band);
  for (const std::int64_t n : {1, 2, 7, 64, 128, 129}) {
    for (const std::int64_t rank : {n, (n + 1) / 2}) {
      const at::Tensor g = random_gram(5, n, rank);
      const at::Tensor kept = g.clone();
      const at::Tensor found = symmetric_eigenvalues(g);
      EXPECT_TRUE(g.equal(kept)) << "the input was written to";
      ASSERT_EQ(found.sizes(), (at::IntArrayRef{5, n}));
      const double error = (found - at::linalg_eigvalsh(g).flip(-1)).abs().max().item<double>();
      EXPECT_TRUE(error <= tolerance(g)) << n << " rank " << rank << ": " << error;
    }
  }
}

TEST(Eigenvalues, TakeOneMatrixAndViews) {
  const at::Tensor g = random_gram(4, 12, 12);
  EXPECT_TRUE(symmetric_eigenvalues(g[2]).equal(symmetric_eigenvalues(g)[2]));
  const at::Tensor view = g.as_strided({2, 12, 12}, {288, 12, 1});
  EXPECT_TRUE(symmetric_eigenvalues(view)[1].equal(symmetric_eigenvalues(g)[2]));
}

TEST(Eigenvalues, OfANonFiniteMatrixAreAnErrorThatNamesIt) {
  for (const std::int64_t n : {8, 200}) {
    for (const double bad :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      at::Tensor g = random_gram(3, n, n);
      g[1][2][5] = bad;  // the upper triangle is not read
      EXPECT_TRUE(at::isfinite(symmetric_eigenvalues(g)).all().item<bool>());
      EXPECT_TRUE(at::isfinite(psd_factor(g)).all().item<bool>());
      g[1][5][2] = bad;
      for (const auto function : {symmetric_eigenvalues, psd_factor}) {
        try {
          function(g);
          ADD_FAILURE() << "no error for n " << n;
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), ErrorCode::NotFinite);
          EXPECT_NE(std::string(error.what()).find("matrix 1 of 3"), std::string::npos)
              << error.what();
        }
      }
    }
  }
}

TEST(PsdFactor, TimesItsTransposeIsTheInputOnEitherSideOfTheSwitch) {
  for (const std::int64_t n : {1, 2, 64, 128, 129}) {
    for (const std::int64_t rank : {n, (n + 1) / 2}) {
      const at::Tensor g = random_gram(3, n, rank);
      const at::Tensor factor = psd_factor(g);
      const double error = (factor.matmul(factor.transpose(1, 2)) - g).abs().max().item<double>();
      EXPECT_TRUE(error <= tolerance(g)) << n << " rank " << rank << ": " << error;
    }
    const at::Tensor zero = at::zeros({2, n, n}, at::kDouble);
    EXPECT_TRUE(psd_factor(zero).equal(zero));
  }
}

}  // namespace
}  // namespace subspace
