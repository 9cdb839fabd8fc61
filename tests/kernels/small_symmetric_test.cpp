// Eigenvalues and factors of small symmetric matrices.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "kernels/psd_factor.h"
#include "kernels/symmetric_eigenvalues.h"

namespace subspace::kernels {
namespace {

using Matrix = std::vector<double>;

/// X X^T for a random X [n, rank] whose column k is scaled by scale(k).
Matrix gram(std::int64_t n, std::int64_t rank, std::function<double(std::int64_t)> scale) {
  std::mt19937_64 random(static_cast<std::uint64_t>(n * 1000 + rank));
  std::normal_distribution<double> normal;
  Matrix x(static_cast<std::size_t>(n * rank));
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = normal(random) * scale(static_cast<std::int64_t>(i) % rank);
  }
  Matrix g(static_cast<std::size_t>(n * n));
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (std::int64_t k = 0; k < rank; ++k) {
        sum +=
            x[static_cast<std::size_t>(i * rank + k)] * x[static_cast<std::size_t>(j * rank + k)];
      }
      g[static_cast<std::size_t>(i * n + j)] = sum;
    }
  }
  return g;
}

double one(std::int64_t) { return 1; }

std::int64_t side(const Matrix& a) {
  return std::llround(std::sqrt(static_cast<double>(a.size())));
}

std::vector<double> eigenvalues(Matrix a, bool reference) {
  const std::int64_t n = side(a);
  std::vector<double> out(static_cast<std::size_t>(n));
  std::vector<double> scratch(static_cast<std::size_t>(3 * n));
  const SymmetricEigenvalues p{a.data(), out.data(), scratch.data(), n, 1};
  reference ? symmetric_eigenvalues_reference(p) : symmetric_eigenvalues_cpu(p, 2);
  return out;
}

std::vector<Matrix> cases() {
  std::vector<Matrix> all;
  for (const std::int64_t n : {1, 2, 3, 5, 16, 33, 64, 128}) {
    all.push_back(gram(n, n, one));
    all.push_back(gram(n, (n + 1) / 2, one));
    all.push_back(
        gram(n, n, [](std::int64_t k) { return std::pow(10.0, -static_cast<double>(k % 12)); }));
    all.push_back(gram(n, n, [](std::int64_t) { return 1e-140; }));
    all.push_back(gram(n, n, [](std::int64_t) { return 1e140; }));
    all.emplace_back(static_cast<std::size_t>(n * n), 0.0);
    Matrix ones(static_cast<std::size_t>(n * n), 1.0);
    all.push_back(ones);
    Matrix diagonal(static_cast<std::size_t>(n * n), 0.0);
    Matrix clustered = gram(n, 1, [](std::int64_t) { return 1e-6; });
    for (std::int64_t i = 0; i < n; ++i) {
      diagonal[static_cast<std::size_t>(i * n + i)] = static_cast<double>((i * 7) % 5);
      clustered[static_cast<std::size_t>(i * n + i)] += 1;
    }
    all.push_back(diagonal);
    all.push_back(clustered);
  }
  return all;
}

TEST(SymmetricEigenvalues, AgreeWithJacobiAndKeepTraceAndNorm) {
  for (const Matrix& a : cases()) {
    const std::int64_t n = side(a);
    const auto expected = eigenvalues(a, true);
    const auto found = eigenvalues(a, false);
    const double norm = std::max(std::abs(expected.front()), std::abs(expected.back()));
    const double tolerance = 2 * eigenvalue_tolerance(n) * norm;
    double trace = 0;
    double sum = 0;
    double squares = 0;
    double frobenius = 0;
    for (std::int64_t i = 0; i < n; ++i) trace += a[static_cast<std::size_t>(i * n + i)];
    const double unit = norm > 0 ? norm : 1;
    for (const double x : a) frobenius += (x / unit) * (x / unit);
    for (std::size_t i = 0; i < found.size(); ++i) {
      ASSERT_TRUE(std::abs(found[i] - expected[i]) <= tolerance)
          << "n " << n << " value " << i << ": " << found[i] << " for " << expected[i];
      if (i > 0) {
        EXPECT_GE(found[i - 1], found[i]);
      }
      sum += found[i];
      squares += (found[i] / unit) * (found[i] / unit);
    }
    EXPECT_TRUE(std::abs(sum - trace) <= static_cast<double>(n) * tolerance);
    EXPECT_TRUE(std::abs(squares - frobenius) <= 4 * eigenvalue_tolerance(n) * frobenius);
  }
}

TEST(SymmetricEigenvalues, AreThoseOfTheSecondDifference) {
  // 2 on the diagonal, -1 beside it: 2 - 2 cos(k pi / (n + 1)), known in closed form.
  const std::int64_t n = 50;
  Matrix a(static_cast<std::size_t>(n * n), 0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    a[static_cast<std::size_t>(i * n + i)] = 2;
    if (i > 0) a[static_cast<std::size_t>(i * n + i - 1)] = -1;  // the lower triangle is enough
  }
  for (const bool reference : {false, true}) {
    const auto found = eigenvalues(a, reference);
    for (std::int64_t k = 1; k <= n; ++k) {
      const double exact = 2 - 2 * std::cos(static_cast<double>(k) * std::acos(-1.0) / (n + 1));
      EXPECT_NEAR(found[static_cast<std::size_t>(n - k)], exact, 4 * eigenvalue_tolerance(n));
    }
  }
}

TEST(SymmetricEigenvalues, OfANonFiniteMatrixAreNaN) {
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Matrix a = gram(6, 6, one);
    a[4 * 6 + 2] = bad;
    for (const bool reference : {false, true}) {
      for (const double x : eigenvalues(a, reference)) EXPECT_TRUE(std::isnan(x));
    }
  }
}

TEST(SymmetricEigenvalues, OfABatchDoNotDependOnThreads) {
  const std::int64_t n = 24;
  const std::int64_t batch = 37;
  Matrix a;
  for (std::int64_t b = 0; b < batch; ++b) {
    const Matrix g = gram(n, 1 + b % n, one);
    a.insert(a.end(), g.begin(), g.end());
  }
  std::vector<double> first;
  for (const int threads : {1, 2, 5}) {
    Matrix copy = a;
    std::vector<double> out(static_cast<std::size_t>(batch * n));
    std::vector<double> scratch(static_cast<std::size_t>(3 * batch * n));
    symmetric_eigenvalues_cpu({copy.data(), out.data(), scratch.data(), n, batch}, threads);
    if (first.empty()) first = out;
    EXPECT_EQ(out, first);
  }
}

TEST(PsdFactor, ItsGramMatrixIsTheInput) {
  for (const Matrix& g : cases()) {
    const std::int64_t n = side(g);
    double largest = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      largest = std::max(largest, g[static_cast<std::size_t>(i * n + i)]);
    }
    const double tolerance =
        4 * static_cast<double>(n) * std::numeric_limits<double>::epsilon() * largest;
    for (const bool reference : {false, true}) {
      Matrix r(g.size(), std::numeric_limits<double>::quiet_NaN());
      std::vector<double> diagonal(static_cast<std::size_t>(n));
      const PsdFactor p{g.data(), r.data(), diagonal.data(), n, 1};
      reference ? psd_factor_reference(p) : psd_factor_cpu(p, 2);
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
          double sum = 0;
          for (std::int64_t k = 0; k < n; ++k) {
            sum += r[static_cast<std::size_t>(k * n + i)] * r[static_cast<std::size_t>(k * n + j)];
          }
          ASSERT_TRUE(std::abs(sum - g[static_cast<std::size_t>(i * n + j)]) <= tolerance)
              << "n " << n << " at " << i << ", " << j;
        }
      }
    }
  }
}

TEST(PsdFactor, HasNoMoreRowsThanTheRank) {
  const std::int64_t n = 64;
  const std::int64_t rank = 20;
  const Matrix g = gram(n, rank, one);
  Matrix r(g.size());
  std::vector<double> diagonal(static_cast<std::size_t>(n));
  psd_factor_cpu({g.data(), r.data(), diagonal.data(), n, 1}, 1);
  for (std::int64_t k = 0; k < n; ++k) {
    double squares = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      squares += std::pow(r[static_cast<std::size_t>(k * n + i)], 2);
    }
    EXPECT_EQ(squares > 0, k < rank) << "row " << k;
  }
}

TEST(PsdFactor, OfANonFiniteMatrixIsNaNAndOthersOfTheBatchAreNot) {
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    // On the diagonal a comparison could skip it, below it a row could never be looked at.
    for (const std::size_t where : {0, 6 * 6 - 1, 4 * 6 + 2}) {
      Matrix a = gram(6, 6, one);
      const std::size_t size = a.size();
      a.insert(a.end(), a.begin(), a.end());
      a[size + where] = bad;
      for (const bool reference : {false, true}) {
        Matrix r(a.size());
        std::vector<double> diagonal(12);
        const PsdFactor p{a.data(), r.data(), diagonal.data(), 6, 2};
        reference ? psd_factor_reference(p) : psd_factor_cpu(p, 2);
        for (std::size_t i = 0; i < r.size(); ++i) EXPECT_EQ(std::isnan(r[i]), i >= size) << i;
      }
    }
  }
}

}  // namespace
}  // namespace subspace::kernels
