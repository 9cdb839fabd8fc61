// Cholesky factors of small matrices against plain loops.
#include "kernels/small_cholesky.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace subspace::kernels {
namespace {

using Matrix = std::vector<double>;

/// X^T X of a random X [rows, n] whose columns shrink from 1 to `least`.
Matrix gram_of(std::int64_t rows, std::int64_t n, double least = 1) {
  std::mt19937_64 engine(static_cast<std::uint64_t>(100 * rows + n));
  std::normal_distribution<double> normal;
  Matrix x(static_cast<std::size_t>(rows * n)), g(static_cast<std::size_t>(n * n), 0.0);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto column = static_cast<double>(static_cast<std::int64_t>(i) % n);
    x[i] = normal(engine) * std::pow(least, column / static_cast<double>(n));
  }
  for (std::int64_t k = 0; k < rows; ++k) {
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        g[static_cast<std::size_t>(i * n + j)] +=
            x[static_cast<std::size_t>(k * n + i)] * x[static_cast<std::size_t>(k * n + j)];
      }
    }
  }
  return g;
}

/// By inner products, in the other order.
Matrix reference(const Matrix& g, std::int64_t n) {
  Matrix r(g.size(), 0.0);
  const auto at = [n](std::int64_t i, std::int64_t j) {
    return static_cast<std::size_t>(i * n + j);
  };
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t i = 0; i <= j; ++i) {
      double sum = g[at(i, j)];
      for (std::int64_t k = 0; k < i; ++k) sum -= r[at(k, i)] * r[at(k, j)];
      r[at(i, j)] = i == j ? std::sqrt(sum) : sum / r[at(i, i)];
    }
  }
  return r;
}

std::vector<Isa> versions() {
  std::vector<Isa> all = {Isa::portable};
  if (isa_available(Isa::avx2)) all.push_back(Isa::avx2);
  return all;
}

TEST(SmallCholesky, AgreesWithPlainLoopsAndGivesTheMatrix) {
  for (const Isa isa : versions()) {
    for (const std::int64_t n : {1, 2, 3, 4, 5, 8, 15, 33, 144}) {
      for (const double least : {1.0, 1e-2, 1e-5}) {
        const Matrix g = gram_of(n + 40, n, least);
        Matrix r(g.size(), 7.0);
        ASSERT_TRUE(small_cholesky(g.data(), n, r.data(), isa)) << n;
        const Matrix expected = reference(g, n);
        for (std::int64_t i = 0; i < n; ++i) {
          for (std::int64_t j = 0; j < n; ++j) {
            const auto place = static_cast<std::size_t>(i * n + j);
            if (j < i) {
              ASSERT_EQ(r[place], 0.0) << n;
              continue;
            }
            // Columns are as large as their own diagonal element of G says.
            const double size = std::sqrt(g[static_cast<std::size_t>(j * n + j)]);
            ASSERT_TRUE(std::abs(r[place] - expected[place]) <= 1e-12 * size) << n;
            double sum = 0;
            for (std::int64_t k = 0; k <= i; ++k) {
              sum +=
                  r[static_cast<std::size_t>(k * n + i)] * r[static_cast<std::size_t>(k * n + j)];
            }
            const double other = std::sqrt(g[static_cast<std::size_t>(i * n + i)]);
            ASSERT_TRUE(std::abs(sum - g[place]) <= 1e-14 * static_cast<double>(n) * size * other);
          }
        }
      }
    }
  }
}

TEST(SmallCholesky, ReadsTheUpperTriangleAlone) {
  for (const Isa isa : versions()) {
    const std::int64_t n = 13;
    const Matrix g = gram_of(40, n);
    Matrix upper = g, r(g.size()), other(g.size());
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < i; ++j)
        upper[static_cast<std::size_t>(i * n + j)] = std::nan("");
    }
    ASSERT_TRUE(small_cholesky(g.data(), n, r.data(), isa));
    ASSERT_TRUE(small_cholesky(upper.data(), n, other.data(), isa));
    EXPECT_EQ(r, other);
  }
}

TEST(SmallCholesky, WhatIsNotPositiveDefiniteIsRefused) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const Isa isa : versions()) {
    const std::int64_t n = 9;
    Matrix r(81);
    const Matrix zero(81, 0.0), good = gram_of(40, n);
    EXPECT_FALSE(small_cholesky(zero.data(), n, r.data(), isa));
    Matrix negative = good;
    negative[80] = -1;
    EXPECT_FALSE(small_cholesky(negative.data(), n, r.data(), isa));
    for (const double bad : {std::nan(""), infinity, -infinity}) {
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t j = i; j < n; ++j) {
          Matrix g = good;
          g[static_cast<std::size_t>(i * n + j)] = bad;
          EXPECT_FALSE(small_cholesky(g.data(), n, r.data(), isa)) << i << " " << j << " " << bad;
        }
      }
    }
  }
}

}  // namespace
}  // namespace subspace::kernels
