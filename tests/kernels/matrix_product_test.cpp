// Matrix products against triple loops: every way that operands can lie, every remainder of the
// tiles and blocks, and what must not change a bit.
#include "kernels/matrix_product.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/product_tile_body.h"

namespace subspace::kernels {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr std::int64_t kPad = 3;  // what lies beside a row and must be left alone

struct Case {
  std::int64_t m = 0, n = 0, k = 0;
  Stored a = Stored::rows, b = Stored::rows;
  double alpha = 1, beta = 0;
  bool weights = false, lower = false;
  std::int64_t batch = 1;
  bool shared = false;  // all products have one B

  std::string text() const {
    return std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k) + ", stored " +
           std::to_string(static_cast<int>(a)) + " and " + std::to_string(static_cast<int>(b)) +
           ", alpha " + std::to_string(alpha) + ", beta " + std::to_string(beta) +
           (weights ? ", weights" : "") + (lower ? ", lower" : "") + ", batch " +
           std::to_string(batch);
  }
};

std::vector<double> normals(std::int64_t count, std::uint64_t stream) {
  std::vector<double> out(static_cast<std::size_t>(count));
  Random random(7, stream);
  for (double& x : out) x = random.normal();
  return out;
}

/// What one call reads and writes.
class Problem {
 public:
  explicit Problem(const Case& c) : case_(c) {
    a_ = make(c.a, c.m, c.k, c.batch, 1, a_stride_);
    b_ = make(c.b, c.k, c.n, c.shared ? 1 : c.batch, 2, b_stride_);
    w_ = normals(c.k, 3);
    c_ = normals(c.batch * c.m * (c.n + kPad), 4);
  }

  std::vector<double>& a() { return a_; }
  std::vector<double>& b() { return b_; }
  std::vector<double>& c() { return c_; }

  /// C after `product`.
  template <typename Run>
  std::vector<double> after(Run run) const {
    std::vector<double> c = c_;
    run(arguments(a_.data(), b_.data(), w_.data(), c.data()));
    return c;
  }

  /// |alpha| |A| diag|w| |B| + |beta| |C|.
  std::vector<double> scale() const {
    const auto absolute = [](std::vector<double> x) {
      for (double& value : x) value = std::abs(value);
      return x;
    };
    const std::vector<double> a = absolute(a_), b = absolute(b_), w = absolute(w_);
    std::vector<double> c = absolute(c_);
    MatrixProduct p = arguments(a.data(), b.data(), w.data(), c.data());
    p.alpha = std::abs(p.alpha);
    p.beta = std::abs(p.beta);
    matrix_product_reference(p);
    return c;
  }

  bool written(std::size_t at) const {
    const auto row =
        static_cast<std::int64_t>(at) / (case_.n + kPad) % std::max<std::int64_t>(case_.m, 1);
    const auto column = static_cast<std::int64_t>(at) % (case_.n + kPad);
    return column < case_.n && (!case_.lower || column <= row);
  }

 private:
  static std::vector<double> make(Stored stored, std::int64_t rows, std::int64_t columns,
                                  std::int64_t batch, std::uint64_t stream, std::int64_t& stride) {
    const std::int64_t lines = stored == Stored::columns ? columns : rows;
    stride = (stored == Stored::columns ? rows : columns) + kPad;
    std::vector<double> out = normals(batch * lines * stride, stream);
    for (std::int64_t i = 0; i < batch * lines; ++i) {
      // Whatever is not part of the matrix must not be read.
      const std::int64_t own = stored == Stored::lower ? i % lines + 1 : stride - kPad;
      for (std::int64_t j = own; j < stride; ++j)
        out[static_cast<std::size_t>(i * stride + j)] = kNan;
    }
    return out;
  }

  MatrixProduct arguments(const double* a, const double* b, const double* w, double* c) const {
    const auto per = [&](const std::vector<double>& x, std::int64_t batch) {
      return batch == 0 ? 0 : static_cast<std::int64_t>(x.size()) / batch;
    };
    return {.a = {a, a_stride_, case_.a, per(a_, case_.batch)},
            .b = {b, b_stride_, case_.b, case_.shared ? 0 : per(b_, case_.batch)},
            .c = c,
            .stride = case_.n + kPad,
            .batch_stride = case_.m * (case_.n + kPad),
            .m = case_.m,
            .n = case_.n,
            .k = case_.k,
            .batch = case_.batch,
            .alpha = case_.alpha,
            .beta = case_.beta,
            .weights = case_.weights ? w : nullptr,
            .lower = case_.lower};
  }

  Case case_;
  std::int64_t a_stride_ = 0, b_stride_ = 0;
  std::vector<double> a_, b_, w_, c_;
};

/// `wide`: the tile of AVX-512 in whatever instructions this file is compiled for, so that its
/// shape is proved where the processor has none.
enum class Version { portable, avx2, avx512, wide };

Isa isa_of(Version version) {
  return version == Version::avx512 ? Isa::avx512
         : version == Version::avx2 ? Isa::avx2
                                    : Isa::portable;
}

class MatrixProductVersion : public ::testing::TestWithParam<Version> {
 protected:
  void SetUp() override {
    if (!isa_available(isa_of(GetParam())))
      GTEST_SKIP() << "this processor lacks the instruction set";
  }
  auto kernel(int threads) const {
    return [=, version = GetParam()](const MatrixProduct& p) {
      if (version == Version::wide) return matrix_product_by(p, Tile<12, 2, 8>::tile(), threads);
      matrix_product_cpu(p, threads, isa_of(version));
    };
  }

  void check(const Case& c, int threads = 2) const {
    const Problem problem(c);
    const std::vector<double> want = problem.after(matrix_product_reference);
    const std::vector<double> found = problem.after(kernel(threads));
    const std::vector<double> scale = problem.scale();
    for (std::size_t i = 0; i < want.size(); ++i) {
      if (problem.written(i)) {
        ASSERT_TRUE(std::abs(found[i] - want[i]) <= product_tolerance(c.k) * scale[i])
            << c.text() << ", value " << i << ": " << found[i] << " for " << want[i];
      } else {
        ASSERT_EQ(found[i], want[i]) << c.text() << ": value " << i << " was to stay";
      }
    }
  }
};

TEST_P(MatrixProductVersion, EveryRemainderOfATile) {
  for (std::int64_t m = 1; m <= 26; ++m) {
    for (std::int64_t n = 1; n <= 34; ++n) check({.m = m, .n = n, .k = 1 + (m * n) % 9, .beta = 1});
  }
}

TEST_P(MatrixProductVersion, EveryWayThatOperandsLie) {
  for (const Stored a : {Stored::rows, Stored::columns, Stored::lower}) {
    for (const Stored b : {Stored::rows, Stored::columns, Stored::lower}) {
      for (const std::int64_t size : {5, 37, 301}) {
        for (const std::int64_t other : {3, 72}) {
          // A symmetric operand is square.
          const std::int64_t m = a == Stored::lower ? size : other;
          const std::int64_t n = b == Stored::lower ? size : other + 11;
          for (const bool weights : {false, true}) {
            check({.m = m, .n = n, .k = size, .a = a, .b = b, .weights = weights});
          }
        }
      }
    }
  }
}

TEST_P(MatrixProductVersion, EveryRemainderOfABlock) {
  // Around multiples of the blocks' sides, and around what one thread takes.
  for (const std::int64_t k : {255, 256, 257, 511, 513})
    check({.m = 20, .n = 30, .k = k, .beta = 1});
  for (const std::int64_t m : {71, 72, 73, 145, 289, 1153}) check({.m = m, .n = 100, .k = 40});
  for (const std::int64_t n : {95, 96, 97, 191, 193, 1009}) {
    check({.m = 30, .n = n, .k = 40, .a = Stored::columns, .b = Stored::columns});
  }
  for (const int threads : {1, 3}) check({.m = 1300, .n = 1100, .k = 3, .beta = -1}, threads);
}

TEST_P(MatrixProductVersion, FactorsOfBothTerms) {
  for (const double alpha : {1.0, -1.0, 0.0, 0.3}) {
    for (const double beta : {0.0, 1.0, -1.0, 2.7}) {
      for (const bool lower : {false, true}) {
        check({.m = 70, .n = 70, .k = 300, .alpha = alpha, .beta = beta, .lower = lower});
      }
    }
  }
}

TEST_P(MatrixProductVersion, OnlyTheLowerTriangle) {
  for (std::int64_t n = 1; n <= 60; ++n) {
    check({.m = n, .n = n, .k = 7, .b = Stored::columns, .beta = 1, .lower = true});
  }
  for (const std::int64_t n : {144, 145, 300, 700, 1250}) {
    check({.m = n, .n = n, .k = 5, .a = Stored::columns, .alpha = -1, .beta = 1, .lower = true});
  }
}

TEST_P(MatrixProductVersion, SeveralProductsAtOnce) {
  for (const bool shared : {false, true}) {
    for (const bool lower : {false, true}) {
      check({.m = 50,
             .n = 50,
             .k = 33,
             .a = Stored::columns,
             .lower = lower,
             .batch = 7,
             .shared = shared},
            3);
    }
  }
}

TEST_P(MatrixProductVersion, EmptySizes) {
  for (const std::int64_t k : {0, 4}) {
    check({.m = 0, .n = 5, .k = k});
    check({.m = 5, .n = 0, .k = k});
    check({.m = 5, .n = 5, .k = k, .batch = 0});
  }
  // A sum of nothing is zero.
  check({.m = 30, .n = 20, .k = 0});
  check({.m = 30, .n = 20, .k = 0, .beta = 2});
}

TEST_P(MatrixProductVersion, WithoutBetaCIsOnlyWritten) {
  for (const bool lower : {false, true}) {
    Problem problem({.m = 61, .n = 61, .k = 300, .lower = lower});
    std::fill(problem.c().begin(), problem.c().end(), kNan);
    const std::vector<double> found = problem.after(kernel(2));
    for (std::size_t i = 0; i < found.size(); ++i) {
      EXPECT_EQ(std::isfinite(found[i]), problem.written(i)) << i;
    }
  }
}

TEST_P(MatrixProductVersion, NanGoesWhereTheSumsHaveIt) {
  const std::int64_t m = 40, n = 50, k = 300;
  for (const double alpha : {1.0, 0.0}) {
    Problem problem({.m = m, .n = n, .k = k, .alpha = alpha});
    problem.a()[static_cast<std::size_t>(17 * (k + kPad) + 290)] = kNan;
    problem.b()[static_cast<std::size_t>(3 * (n + kPad) + 23)] =
        std::numeric_limits<double>::infinity();
    const std::vector<double> found = problem.after(kernel(2));
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        const double x = found[static_cast<std::size_t>(i * (n + kPad) + j)];
        EXPECT_EQ(std::isfinite(x), i != 17 && j != 23) << i << ", " << j;
        EXPECT_TRUE(i != 17 || std::isnan(x)) << j;
      }
    }
  }
}

TEST_P(MatrixProductVersion, NothingChangesABit) {
  const std::int64_t n = 700, k = 530;
  const Case whole = {.m = n, .n = n, .k = k, .a = Stored::columns, .alpha = 0.7, .beta = 0.9};
  const Problem problem(whole);
  const std::vector<double> one = problem.after(kernel(1));
  for (const int threads : {2, 3, 16}) EXPECT_EQ(problem.after(kernel(threads)), one) << threads;
  Case half = whole;
  half.lower = true;
  const std::vector<double> lower = Problem(half).after(kernel(3));
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      const auto at = static_cast<std::size_t>(i * (n + kPad) + j);
      ASSERT_EQ(lower[at], one[at]) << i << ", " << j;
    }
  }
}

TEST_P(MatrixProductVersion, GramMatricesAreSymmetricToTheBit) {
  const std::int64_t n = 217, k = 403;
  const std::vector<double> x = normals(k * n, 9);
  std::vector<double> whole(static_cast<std::size_t>(n * n), kNan), half = whole;
  MatrixProduct p = {.a = {x.data(), n, Stored::columns},
                     .b = {x.data(), n, Stored::rows},
                     .c = whole.data(),
                     .stride = n,
                     .m = n,
                     .n = n,
                     .k = k};
  kernel(2)(p);
  p.c = half.data();
  p.lower = true;
  kernel(2)(p);
  mirror_lower(half.data(), n, n, 2);
  EXPECT_EQ(half, whole);
}

/// Few processors have AVX-512: there is no such case where it cannot run.
std::vector<Version> versions() {
  std::vector<Version> all = {Version::portable, Version::avx2, Version::wide};
  if (isa_available(Isa::avx512)) all.push_back(Version::avx512);
  return all;
}

std::string name_of(const ::testing::TestParamInfo<Version>& info) {
  constexpr const char* kNames[] = {"portable", "avx2", "avx512", "wide"};
  return kNames[static_cast<int>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Each, MatrixProductVersion, ::testing::ValuesIn(versions()), name_of);

TEST(MirrorLower, CopiesWhatIsBelowTheDiagonal) {
  for (const std::int64_t n : {0, 1, 31, 32, 33, 100, 600}) {
    const std::int64_t stride = n + 2;
    std::vector<double> c = normals(n * stride, 5);
    const std::vector<double> before = c;
    mirror_lower(c.data(), n, stride, 3);
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < stride; ++j) {
        const std::int64_t from = j > i && j < n ? j * stride + i : i * stride + j;
        ASSERT_EQ(c[static_cast<std::size_t>(i * stride + j)],
                  before[static_cast<std::size_t>(from)])
            << n << ": " << i << ", " << j;
      }
    }
  }
}

}  // namespace
}  // namespace subspace::kernels
