// Singular value decompositions of small matrices against one-sided Jacobi rotations.
#include "kernels/small_svd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace subspace::kernels {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Matrix {
  std::int64_t rows = 0, columns = 0;
  std::vector<double> data;
  std::string name;

  Matrix(std::int64_t m, std::int64_t n, std::string of = "")
      : rows(m),
        columns(n),
        data(static_cast<std::size_t>(m * n), 0.0),
        name(of + " " + std::to_string(m) + " x " + std::to_string(n)) {}
  double& operator()(std::int64_t i, std::int64_t j) {
    return data[static_cast<std::size_t>(i * columns + j)];
  }
  double operator()(std::int64_t i, std::int64_t j) const {
    return data[static_cast<std::size_t>(i * columns + j)];
  }
};

Matrix random(std::int64_t m, std::int64_t n, const std::string& name = "random") {
  Matrix out(m, n, name);
  std::mt19937_64 engine(static_cast<std::uint64_t>(1000 * m + n));
  std::normal_distribution<double> normal;
  for (double& x : out.data) x = normal(engine);
  return out;
}

Matrix turned(const Matrix& x) {
  Matrix out(x.columns, x.rows);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t j = 0; j < x.columns; ++j) out(j, i) = x(i, j);
  }
  return out;
}

Matrix times(const Matrix& x, const Matrix& y) {
  Matrix out(x.rows, y.columns);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t k = 0; k < x.columns; ++k) {
      for (std::int64_t j = 0; j < y.columns; ++j) out(i, j) += x(i, k) * y(k, j);
    }
  }
  return out;
}

double norm(const Matrix& x) {
  double largest = 0, square = 0;
  for (const double v : x.data) largest = std::max(largest, std::abs(v));
  if (largest == 0) return 0;
  for (const double v : x.data) square += (v / largest) * (v / largest);
  return largest * std::sqrt(square);
}

double difference(const Matrix& x, const Matrix& y) {
  Matrix out = x;
  for (std::size_t i = 0; i < out.data.size(); ++i) out.data[i] -= y.data[i];
  return norm(out);
}

/// The reference: columns are rotated against each other until all are orthogonal; their lengths
/// are the singular values, descending.
std::vector<double> jacobi(const Matrix& given) {
  Matrix a = given.rows >= given.columns ? given : turned(given);
  const double unit = norm(a) > 0 ? norm(a) : 1;
  for (double& x : a.data) x /= unit;
  const auto dot = [&](std::int64_t p, std::int64_t q) {
    double sum = 0;
    for (std::int64_t i = 0; i < a.rows; ++i) sum += a(i, p) * a(i, q);
    return sum;
  };
  for (bool again = true; again;) {
    again = false;
    for (std::int64_t p = 0; p < a.columns; ++p) {
      for (std::int64_t q = p + 1; q < a.columns; ++q) {
        const double alpha = dot(p, p), beta = dot(q, q), gamma = dot(p, q);
        // Beyond the first part: columns that are rounding.
        if (std::abs(gamma) <= 1e-15 * std::sqrt(alpha * beta) || std::abs(gamma) <= 1e-34) {
          continue;
        }
        again = true;
        const double zeta = (beta - alpha) / (2 * gamma);
        const double t = std::copysign(1, zeta) / (std::abs(zeta) + std::hypot(1, zeta));
        const double c = 1 / std::hypot(1, t), s = c * t;
        for (std::int64_t i = 0; i < a.rows; ++i) {
          const double x = a(i, p), y = a(i, q);
          a(i, p) = c * x - s * y;
          a(i, q) = s * x + c * y;
        }
      }
    }
  }
  std::vector<double> values;
  for (std::int64_t p = 0; p < a.columns; ++p) values.push_back(unit * std::sqrt(dot(p, p)));
  std::sort(values.rbegin(), values.rend());
  return values;
}

Matrix scaled(Matrix x, const std::string& name, double rows, double columns) {
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t j = 0; j < x.columns; ++j) {
      x(i, j) *= std::pow(rows, static_cast<double>(i)) * std::pow(columns, static_cast<double>(j));
    }
  }
  x.name = name + x.name;
  return x;
}

Matrix named(Matrix x, const std::string& name) {
  x.name = name + " " + std::to_string(x.rows) + " x " + std::to_string(x.columns);
  return x;
}

/// Few values, each many times: reflections of a diagonal.
Matrix repeated(std::int64_t m, std::int64_t n) {
  Matrix x(m, n);
  for (std::int64_t i = 0; i < std::min(m, n); ++i)
    x(i, i) = i % 3 == 0 ? 1 : i % 3 == 1 ? 1e-7 : 2;
  const auto reflect = [](std::int64_t size) {
    Matrix out(size, size);
    for (std::int64_t i = 0; i < size; ++i) {
      for (std::int64_t j = 0; j < size; ++j)
        out(i, j) = (i == j) - 2.0 / static_cast<double>(size);
    }
    return out;
  };
  return named(times(times(reflect(m), x), reflect(n)), "repeated");
}

std::vector<Matrix> of_shape(std::int64_t m, std::int64_t n) {
  const std::int64_t q = std::min(m, n);
  const double step = std::pow(1e-12, 1.0 / static_cast<double>(std::max<std::int64_t>(q - 1, 1)));
  std::vector<Matrix> all = {random(m, n), Matrix(m, n, "zero"), repeated(m, n)};
  all.push_back(scaled(random(m, n), "graded down ", step, 1));
  all.push_back(scaled(random(m, n), "graded across ", 1, step));
  all.push_back(scaled(random(m, n), "graded up both ", 1 / step, 1 / step));
  all.push_back(scaled(random(m, n), "far graded ", 1e-9, 1e-9));
  all.push_back(named(times(random(m, (q + 1) / 2), random((q + 1) / 2, n)), "half the rank"));
  all.push_back(named(times(random(m, 1), random(1, n)), "rank one"));
  Matrix ones(m, n, "ones"), diagonal(m, n, "diagonal"), chain(m, n, "chain"), kahan(m, n, "Kahan");
  Matrix tiny = random(m, n, "tiny"), huge = random(m, n, "huge"), least(m, n, "denormal");
  for (double& x : ones.data) x = 1;
  for (double& x : tiny.data) x *= 1e-305;
  for (double& x : huge.data) x *= 1e302;
  for (std::int64_t i = 0; i < q; ++i) {
    diagonal(i, i) = static_cast<double>((i * 7) % 5 - 2);
    // Bidiagonal already, with zeros in both diagonals.
    chain(i, i) = i % 5 == 3 ? 0 : 1;
    if (i + 1 < n) chain(i, i + 1) = i % 7 == 4 ? 0 : 1;
    least(i, i) = 5e-324;
    const double c = 0.3, s = std::sqrt(1 - c * c);
    for (std::int64_t j = i; j < n; ++j) {
      kahan(i, j) = std::pow(s, static_cast<double>(i)) * (i == j ? 1 : -c);
    }
  }
  for (Matrix& x : std::vector<Matrix>{ones, diagonal, chain, kahan, tiny, huge, least}) {
    all.push_back(std::move(x));
  }
  return all;
}

std::vector<Matrix> cases() {
  std::vector<Matrix> all;
  constexpr std::int64_t kShapes[][2] = {{1, 1},   {1, 6},   {6, 1},   {2, 2},   {3, 3},
                                         {5, 3},   {3, 5},   {4, 4},   {16, 16}, {17, 17},
                                         {33, 21}, {21, 33}, {80, 16}, {16, 80}, {67, 67}};
  for (const auto& [m, n] : kShapes) {
    for (Matrix& x : of_shape(m, n)) all.push_back(std::move(x));
  }
  all.push_back(random(144, 144));
  all.push_back(named(times(random(144, 128), random(128, 144)), "rank 128"));
  return all;
}

std::vector<Isa> versions() {
  std::vector<Isa> all = {Isa::portable};
  if (isa_available(Isa::avx2)) all.push_back(Isa::avx2);
  return all;
}

bool decomposed(SmallSvd& svd, const Matrix& x) {
  return svd.decompose(x.data.data(), x.rows, x.columns, x.columns);
}

Matrix vectors(SmallSvd& svd, const Matrix& of, bool left, std::int64_t count) {
  Matrix out(left ? of.rows : of.columns, count);
  left ? svd.left(count, out.data.data()) : svd.right(count, out.data.data());
  return out;
}

double from_orthonormal(const Matrix& x) {
  Matrix unit(x.columns, x.columns);
  for (std::int64_t i = 0; i < x.columns; ++i) unit(i, i) = 1;
  return difference(times(turned(x), x), unit);
}

TEST(SmallSvd, AgreesWithJacobi) {
  for (const Isa isa : versions()) {
    SmallSvd svd(isa);
    for (const Matrix& a : cases()) {
      ASSERT_TRUE(decomposed(svd, a)) << a.name;
      const std::vector<double> expected = jacobi(a);
      ASSERT_EQ(svd.values().size(), expected.size()) << a.name;
      const double bound = 2 * small_svd_tolerance(a.rows, a.columns) * expected[0];
      for (std::size_t j = 0; j < expected.size(); ++j) {
        ASSERT_TRUE(std::abs(svd.values()[j] - expected[j]) <= bound)
            << a.name << " value " << j << ": " << svd.values()[j] << " for " << expected[j];
        if (j > 0) {
          ASSERT_LE(svd.values()[j], svd.values()[j - 1]) << a.name;
        }
      }
    }
  }
}

TEST(SmallSvd, VectorsAreOrthonormalAndGiveTheMatrix) {
  for (const Isa isa : versions()) {
    SmallSvd svd(isa);
    for (const Matrix& a : cases()) {
      ASSERT_TRUE(decomposed(svd, a)) << a.name;
      const std::int64_t q = std::min(a.rows, a.columns);
      const double bound =
          small_svd_tolerance(a.rows, a.columns) * std::sqrt(static_cast<double>(q));
      const Matrix u = vectors(svd, a, true, q), v = vectors(svd, a, false, q);
      EXPECT_TRUE(from_orthonormal(u) <= bound) << a.name << ": " << from_orthonormal(u);
      EXPECT_TRUE(from_orthonormal(v) <= bound) << a.name << ": " << from_orthonormal(v);
      // Of a denormal matrix nothing but its size is left.
      if (svd.values()[0] < 1e-300) continue;
      const double unit = svd.values()[0];
      Matrix of_values = u, whole = a;
      for (double& x : whole.data) x /= unit;
      for (std::int64_t i = 0; i < u.rows; ++i) {
        for (std::int64_t j = 0; j < q; ++j) {
          of_values(i, j) *= svd.values()[static_cast<std::size_t>(j)] / unit;
        }
      }
      const double error = difference(times(of_values, turned(v)), whole);
      EXPECT_TRUE(error <= bound) << a.name << ": " << error;
    }
  }
}

TEST(SmallSvd, FirstVectorsAndProjectionsAreThoseOfAllVectors) {
  for (const Isa isa : versions()) {
    SmallSvd svd(isa);
    for (const Matrix& a : cases()) {
      ASSERT_TRUE(decomposed(svd, a)) << a.name;
      const std::int64_t q = std::min(a.rows, a.columns);
      const double bound = 4 * small_svd_tolerance(a.rows, a.columns);
      for (const bool left : {true, false}) {
        const Matrix all = vectors(svd, a, left, q);
        for (const std::int64_t count : {std::int64_t{1}, (q + 2) / 3}) {
          const Matrix few = vectors(svd, a, left, count);
          Matrix same(few.rows, count);
          for (std::int64_t i = 0; i < few.rows; ++i) {
            for (std::int64_t j = 0; j < count; ++j) same(i, j) = all(i, j);
          }
          EXPECT_TRUE(difference(few, same) <= bound) << a.name;
        }
        const Matrix x = random(all.rows, 5);
        Matrix found(q, 5);
        left ? svd.project_left(x.data.data(), 5, found.data.data())
             : svd.project_right(x.data.data(), 5, found.data.data());
        const double error = difference(found, times(turned(all), x));
        EXPECT_TRUE(error <= bound * norm(x)) << a.name << ": " << error;
      }
    }
  }
}

TEST(SmallSvd, KnownByHand) {
  // [3 0; 4 5]: 3 sqrt 5 and sqrt 5, left vectors (1, 3) and (3, -1) over sqrt 10.
  Matrix a(2, 2);
  a.data = {3, 0, 4, 5};
  SmallSvd svd;
  ASSERT_TRUE(decomposed(svd, a));
  EXPECT_NEAR(svd.values()[0], 3 * std::sqrt(5), 1e-14);
  EXPECT_NEAR(svd.values()[1], std::sqrt(5), 1e-14);
  const Matrix u = vectors(svd, a, true, 2);
  EXPECT_NEAR(std::abs(u(0, 0)), 1 / std::sqrt(10), 1e-14);
  EXPECT_NEAR(u(1, 0) / u(0, 0), 3, 1e-13);
}

TEST(SmallSvd, RowsMayBeApart) {
  const Matrix wide = random(9, 14);
  Matrix part(9, 6);
  for (std::int64_t i = 0; i < 9; ++i) {
    for (std::int64_t j = 0; j < 6; ++j) part(i, j) = wide(i, j);
  }
  SmallSvd one, other;
  ASSERT_TRUE(one.decompose(wide.data.data(), 9, 6, 14));
  ASSERT_TRUE(decomposed(other, part));
  EXPECT_EQ(one.values(), other.values());
}

TEST(SmallSvd, SameBitsWhateverWasDoneBefore) {
  for (const Isa isa : versions()) {
    SmallSvd used(isa);
    for (const Matrix& a : cases()) {
      SmallSvd fresh(isa);
      ASSERT_TRUE(decomposed(used, a)) << a.name;
      ASSERT_TRUE(decomposed(fresh, a)) << a.name;
      const std::int64_t q = std::min(a.rows, a.columns);
      ASSERT_EQ(used.values(), fresh.values()) << a.name;
      for (const bool left : {true, false}) {
        ASSERT_EQ(vectors(used, a, left, q).data, vectors(fresh, a, left, q).data) << a.name;
      }
    }
  }
}

/// Of any sizes and kinds, one of them without a decomposition.
TEST(SmallSvd, SeveralAtOnceAreTheSameBitsAsOneByOne) {
  for (const Isa isa : versions()) {
    std::vector<Matrix> all = cases();
    all.insert(all.begin() + 5, random(6, 4));
    all[5].data[3] = kNan;
    for (std::size_t first = 0; first < all.size(); first += 3) {
      std::vector<SmallSvd> svds(std::min<std::size_t>(4, all.size() - first), SmallSvd(isa));
      std::vector<SmallSvd::Task> tasks;
      for (std::size_t i = 0; i < svds.size(); ++i) {
        const Matrix& a = all[first + i];
        tasks.push_back({&svds[i], a.data.data(), a.rows, a.columns, a.columns});
      }
      SmallSvd::decompose(tasks.data(), static_cast<std::int64_t>(tasks.size()));
      for (std::size_t i = 0; i < svds.size(); ++i) {
        const Matrix& a = all[first + i];
        SmallSvd alone(isa);
        ASSERT_EQ(tasks[i].done, decomposed(alone, a)) << a.name;
        if (!tasks[i].done) {
          for (const double x : svds[i].values()) EXPECT_TRUE(std::isnan(x));
          continue;
        }
        ASSERT_EQ(svds[i].values(), alone.values()) << a.name;
        const std::int64_t q = std::min(a.rows, a.columns);
        for (const bool left : {true, false}) {
          ASSERT_EQ(vectors(svds[i], a, left, q).data, vectors(alone, a, left, q).data) << a.name;
        }
      }
    }
  }
}

TEST(SmallSvd, NanAndInfinityAreReportedWhereverTheyStand) {
  for (const auto& [m, n] : {std::pair{1, 1}, {4, 4}, {9, 5}, {5, 9}}) {
    for (const double bad : {kNan, kInfinity, -kInfinity}) {
      for (const bool among_zeros : {true, false}) {
        for (std::int64_t place = 0; place < m * n; ++place) {
          Matrix a = among_zeros ? Matrix(m, n) : random(m, n);
          a.data[static_cast<std::size_t>(place)] = bad;
          SmallSvd svd;
          EXPECT_FALSE(decomposed(svd, a)) << place;
          for (const double x : svd.values()) EXPECT_TRUE(std::isnan(x)) << place;
        }
      }
    }
  }
}

/// Random shapes and scales, zeros strewn in: it ends, and values and matrix have one norm.
TEST(SmallSvd, ManyKindsOfMatricesEnd) {
  std::mt19937_64 engine(5);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  SmallSvd svd;
  for (int round = 0; round < 3000; ++round) {
    const auto m = static_cast<std::int64_t>(1 + engine() % 24);
    const auto n = static_cast<std::int64_t>(1 + engine() % 24);
    const double spread = std::pow(10.0, 3 * static_cast<double>(engine() % 6)),
                 zeros = round % 3 == 0 ? 0.7 : 0;
    Matrix a(m, n, "round " + std::to_string(round));
    for (double& x : a.data) {
      x = uniform(engine) < zeros ? 0 : normal(engine) * std::pow(spread, -uniform(engine));
    }
    ASSERT_TRUE(decomposed(svd, a)) << a.name;
    double square = 0;
    for (const double x : svd.values()) square += x * x;
    ASSERT_TRUE(std::abs(std::sqrt(square) - norm(a)) <= small_svd_tolerance(m, n) * norm(a))
        << a.name << ": " << std::sqrt(square) << " for " << norm(a);
  }
}

}  // namespace
}  // namespace subspace::kernels
