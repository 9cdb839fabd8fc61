// Eigenvalues of small matrices without symmetry: by what they must satisfy and by known answers.
#include "kernels/small_eigenvalues.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/small_svd.h"

namespace subspace::kernels {
namespace {

using Complex = std::complex<double>;
constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

struct Square {
  std::int64_t n = 0;
  std::vector<double> data;
  std::string name;

  explicit Square(std::int64_t size, const std::string& of = "")
      : n(size),
        data(static_cast<std::size_t>(size * size), 0.0),
        name(of + " " + std::to_string(size)) {}
  double& operator()(std::int64_t i, std::int64_t j) {
    return data[static_cast<std::size_t>(i * n + j)];
  }
  double operator()(std::int64_t i, std::int64_t j) const {
    return data[static_cast<std::size_t>(i * n + j)];
  }
};

Square random(std::int64_t n, const std::string& name = "random") {
  Square out(n, name);
  std::mt19937_64 engine(static_cast<std::uint64_t>(n));
  std::normal_distribution<double> normal;
  for (double& x : out.data) x = normal(engine);
  return out;
}

Square times(const Square& x, const Square& y, const std::string& name = "") {
  Square out(x.n, name);
  for (std::int64_t i = 0; i < x.n; ++i) {
    for (std::int64_t k = 0; k < x.n; ++k) {
      for (std::int64_t j = 0; j < x.n; ++j) out(i, j) += x(i, k) * y(k, j);
    }
  }
  return out;
}

double norm(const Square& x) {
  double square = 0;
  for (const double v : x.data) square += v * v;
  return std::sqrt(square);
}

/// Orthogonal and symmetric: a reflection of no particular direction.
Square reflection(std::int64_t n) {
  Square out(n);
  double square = 0;
  for (std::int64_t i = 0; i < n; ++i) square += static_cast<double>((i + 1) * (i + 1));
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      out(i, j) = (i == j) - 2 * static_cast<double>((i + 1) * (j + 1)) / square;
    }
  }
  return out;
}

std::vector<Square> of_size(std::int64_t n) {
  std::vector<Square> all = {random(n), Square(n, "zero"), reflection(n)};
  all.back().name = "reflection " + std::to_string(n);
  Square unit(n, "unit"), ones(n, "ones"), jordan(n, "Jordan"), cycle(n, "cycle"), skew(n, "skew"),
      graded = random(n, "graded"), half = random(n), companion(n, "companion"),
      triangle(n, "triangle"), few = random(n, "few columns");
  for (double& x : ones.data) x = 1;
  for (std::int64_t i = 0; i < n; ++i) {
    unit(i, i) = jordan(i, i) = 1;
    // Nothing but shifts of their own gets the iteration away from a permutation of all.
    cycle((i + 1) % n, i) = 1;
    companion(0, i) = 1.0 / static_cast<double>(i + 1);
    if (i > 0) jordan(i - 1, i) = companion(i, i - 1) = 1;
    for (std::int64_t j = 0; j < n; ++j) {
      graded(i, j) *= std::pow(1e-12, static_cast<double>(i + j) / static_cast<double>(2 * n));
      if (i < j) skew(i, j) = half(i, j), skew(j, i) = -half(i, j);
      if (i <= j) triangle(i, j) = half(i, j);
      if (j >= (n + 1) / 2) few(i, j) = 0;
    }
  }
  const Square deficient = times(few, half, "half the rank");
  Square upside = graded;
  upside.name = "graded up " + std::to_string(n);
  std::reverse(upside.data.begin(), upside.data.end());
  for (const Square& x :
       {unit, ones, jordan, cycle, skew, graded, companion, triangle, few, deficient, upside}) {
    all.push_back(x);
  }
  return all;
}

std::vector<Square> cases() {
  std::vector<Square> all;
  for (const std::int64_t n : {1, 2, 3, 4, 5, 7, 12, 13, 16, 25, 31, 40}) {
    for (Square& x : of_size(n)) all.push_back(std::move(x));
  }
  return all;
}

std::vector<Isa> versions() {
  std::vector<Isa> all = {Isa::portable};
  if (isa_available(Isa::avx2)) all.push_back(Isa::avx2);
  return all;
}

bool found(SmallEigenvalues& own, const Square& a) { return own.find(a.data.data(), a.n, a.n); }

std::vector<Complex> values(const SmallEigenvalues& own) {
  std::vector<Complex> out;
  for (std::size_t j = 0; j < own.real().size(); ++j) {
    out.emplace_back(own.real()[j], own.imaginary()[j]);
  }
  return out;
}

/// How far A must be changed, at least, for `at` to be an eigenvalue: the smallest singular value
/// of A - at I, written with real matrices.
double distance(const Square& a, Complex at) {
  const std::int64_t n = a.n;
  Square whole(2 * n);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) whole(i, j) = whole(n + i, n + j) = a(i, j);
    whole(i, i) -= at.real();
    whole(n + i, n + i) -= at.real();
    whole(i, n + i) = at.imag();
    whole(n + i, i) = -at.imag();
  }
  SmallSvd svd(Isa::portable);
  EXPECT_TRUE(svd.decompose(whole.data.data(), 2 * n, 2 * n, 2 * n));
  return svd.values().back();
}

/// Largest distance of an expected value to one found, each found one used once.
double apart(std::vector<Complex> have, const std::vector<Complex>& want) {
  double most = have.size() == want.size() ? 0 : std::numeric_limits<double>::infinity();
  for (const Complex& x : want) {
    if (have.empty()) break;
    const auto near = std::min_element(have.begin(), have.end(), [&](Complex a, Complex b) {
      return std::abs(a - x) < std::abs(b - x);
    });
    most = std::max(most, std::abs(*near - x));
    have.erase(near);
  }
  return most;
}

TEST(SmallEigenvalues, AreThoseOfAMatrixNearby) {
  for (const Isa isa : versions()) {
    SmallEigenvalues own(isa);
    for (const Square& a : cases()) {
      ASSERT_TRUE(found(own, a)) << a.name;
      const double bound = 8 * static_cast<double>(a.n) * kEpsilon * norm(a);
      for (const Complex& value : values(own)) {
        EXPECT_TRUE(distance(a, value) <= bound)
            << a.name << " " << value << ": " << distance(a, value) << " > " << bound;
      }
    }
  }
}

/// Each eigenvalue as often as it belongs: sums of their powers are traces of A's.
TEST(SmallEigenvalues, SumsOfPowersAreTraces) {
  for (const Isa isa : versions()) {
    SmallEigenvalues own(isa);
    for (const Square& a : cases()) {
      ASSERT_TRUE(found(own, a)) << a.name;
      Square power = a;
      const double size = norm(a);
      double scale = size;
      for (int exponent = 1; exponent <= 4; ++exponent) {
        double trace = 0;
        for (std::int64_t i = 0; i < a.n; ++i) trace += power(i, i);
        Complex sum = 0;
        for (const Complex& value : values(own)) sum += std::pow(value, exponent);
        const double bound = 20 * static_cast<double>(a.n * exponent) * kEpsilon * scale;
        EXPECT_TRUE(std::abs(sum - trace) <= bound)
            << a.name << " power " << exponent << ": " << sum << " for " << trace;
        power = times(power, a);
        scale *= size;
      }
    }
  }
}

TEST(SmallEigenvalues, KnownAnswers) {
  for (const Isa isa : versions()) {
    SmallEigenvalues own(isa);
    for (const std::int64_t n : {2, 3, 6, 17, 64, 128}) {
      // Roots of one.
      Square cycle(n, "cycle");
      std::vector<Complex> roots;
      for (std::int64_t i = 0; i < n; ++i) {
        cycle((i + 1) % n, i) = 1;
        roots.push_back(
            std::polar(1.0, 2 * std::acos(-1.0) * static_cast<double>(i) / static_cast<double>(n)));
      }
      ASSERT_TRUE(found(own, cycle)) << n;
      EXPECT_TRUE(apart(values(own), roots) <= static_cast<double>(n) * 4e-15) << n;

      // Pairs a +- b i and a few real ones, seen through a reflection: a normal matrix.
      Square blocks(n);
      std::vector<Complex> want;
      for (std::int64_t i = 0; i < n; ++i) {
        const double a = std::pow(-0.9, static_cast<double>(i)), b = 0.3 + a;
        if (i % 3 == 0 && i + 1 < n) {
          blocks(i, i) = blocks(i + 1, i + 1) = a;
          blocks(i, i + 1) = b, blocks(i + 1, i) = -b;
          want.emplace_back(a, b);
          want.emplace_back(a, -b);
          ++i;
        } else {
          blocks(i, i) = a;
          want.emplace_back(a, 0);
        }
      }
      const Square hidden = times(times(reflection(n), blocks), reflection(n));
      ASSERT_TRUE(found(own, hidden)) << n;
      const double error = apart(values(own), want);
      EXPECT_TRUE(error <= 8 * static_cast<double>(n) * kEpsilon * norm(hidden))
          << n << ": " << error;
    }
  }
}

TEST(SmallEigenvalues, PairsStandBesideEachOther) {
  SmallEigenvalues own;
  ASSERT_TRUE(found(own, random(40)));
  const std::vector<Complex> all = values(own);
  for (std::size_t j = 0; j < all.size(); ++j) {
    if (all[j].imag() == 0) continue;
    ASSERT_LT(j + 1, all.size());
    EXPECT_GT(all[j].imag(), 0);
    EXPECT_EQ(all[j + 1], std::conj(all[j]));
    ++j;
  }
}

TEST(SmallEigenvalues, ScaleByPowersOfTwoExactly) {
  for (const Square& a : of_size(13)) {
    SmallEigenvalues plain;
    ASSERT_TRUE(found(plain, a)) << a.name;
    for (const int exponent : {-960, -300, 300, 990}) {
      Square other = a;
      for (double& x : other.data) x = std::ldexp(x, exponent);
      SmallEigenvalues own;
      ASSERT_TRUE(found(own, other)) << a.name;
      for (std::size_t j = 0; j < own.real().size(); ++j) {
        EXPECT_EQ(own.real()[j], std::ldexp(plain.real()[j], exponent)) << a.name;
        EXPECT_EQ(own.imaginary()[j], std::ldexp(plain.imaginary()[j], exponent)) << a.name;
      }
    }
  }
}

TEST(SmallEigenvalues, VersionsAgreeAndOneGivesTheSameBits) {
  SmallEigenvalues used;
  for (const Square& a : {random(9), random(64), random(128), random(25)}) {
    SmallEigenvalues fresh, portable(Isa::portable);
    ASSERT_TRUE(found(used, a));
    ASSERT_TRUE(found(fresh, a));
    ASSERT_TRUE(found(portable, a));
    EXPECT_EQ(values(used), values(fresh));
    const double error = apart(values(used), values(portable));
    EXPECT_TRUE(error <= 1e-11 * norm(a)) << a.name << ": " << error;
  }
}

/// Of one size, with few sweeps and many, beside zeros and what has no eigenvalues.
TEST(SmallEigenvalues, EachIsTheSameBitsAloneAndBesideOthers) {
  for (const Isa isa : versions()) {
    for (const std::int64_t n : {1, 2, 3, 5, 16, 33, 64}) {
      std::vector<Square> all = of_size(n);
      Square bad = random(n);
      bad(n - 1, 0) = std::numeric_limits<double>::quiet_NaN();
      all.insert(all.begin() + 2, bad);
      SmallEigenvalues own(isa), alone(isa);
      for (std::size_t first = 0; first < all.size(); first += 3) {
        std::vector<const double*> a;
        for (std::size_t i = first; i < std::min(first + 4, all.size()); ++i) {
          a.push_back(all[i].data.data());
        }
        own.find(a.data(), static_cast<std::int64_t>(a.size()), n, n);
        for (std::size_t i = 0; i < a.size(); ++i) {
          const auto which = static_cast<std::int64_t>(i);
          EXPECT_EQ(own.found(which), found(alone, all[first + i])) << all[first + i].name;
          if (!alone.found()) {
            for (const double x : own.real(which)) EXPECT_TRUE(std::isnan(x));
            continue;
          }
          EXPECT_EQ(own.real(which), alone.real()) << all[first + i].name;
          EXPECT_EQ(own.imaginary(which), alone.imaginary()) << all[first + i].name;
        }
      }
    }
  }
}

TEST(SmallEigenvalues, RowsMayBeApart) {
  const Square whole = random(12);
  Square part(7);
  for (std::int64_t i = 0; i < 7; ++i) {
    for (std::int64_t j = 0; j < 7; ++j) part(i, j) = whole(i, j);
  }
  SmallEigenvalues one, other;
  ASSERT_TRUE(one.find(whole.data.data(), 7, 12));
  ASSERT_TRUE(found(other, part));
  EXPECT_EQ(values(one), values(other));
}

TEST(SmallEigenvalues, NanAndInfinityAreReportedWhereverTheyStand) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const std::int64_t n : {1, 2, 6}) {
    for (const double bad : {std::numeric_limits<double>::quiet_NaN(), infinity, -infinity}) {
      for (const bool among_zeros : {true, false}) {
        for (std::int64_t place = 0; place < n * n; ++place) {
          Square a = among_zeros ? Square(n) : random(n);
          a.data[static_cast<std::size_t>(place)] = bad;
          SmallEigenvalues own;
          EXPECT_FALSE(found(own, a)) << n << " " << place;
          EXPECT_EQ(own.real().size(), static_cast<std::size_t>(n));
          for (const double x : own.real()) EXPECT_TRUE(std::isnan(x));
          for (const double x : own.imaginary()) EXPECT_TRUE(std::isnan(x));
        }
      }
    }
  }
}

/// Random sizes and scales, zeros strewn in: it ends, and the trace is kept.
TEST(SmallEigenvalues, ManyKindsOfMatricesEnd) {
  std::mt19937_64 engine(6);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  SmallEigenvalues own;
  for (int round = 0; round < 4000; ++round) {
    const auto n = static_cast<std::int64_t>(1 + engine() % 20);
    const double spread = std::pow(10.0, 3 * static_cast<double>(engine() % 6)),
                 zeros = round % 2 == 0 ? 0.75 : 0;
    Square a(n, "round " + std::to_string(round) + ", size");
    double trace = 0;
    for (double& x : a.data) {
      x = uniform(engine) < zeros ? 0 : normal(engine) * std::pow(spread, -uniform(engine));
    }
    for (std::int64_t i = 0; i < n; ++i) trace += a(i, i);
    ASSERT_TRUE(found(own, a)) << a.name;
    double sum = 0;
    for (const double x : own.real()) sum += x;
    ASSERT_TRUE(std::abs(sum - trace) <= 20 * static_cast<double>(n) * kEpsilon * norm(a))
        << a.name << ": " << sum << " for " << trace;
  }
}

}  // namespace
}  // namespace subspace::kernels
