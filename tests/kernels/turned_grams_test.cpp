// Inner products of turned Gram matrices against whole matrices and plain loops.
#include "kernels/turned_grams.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace subspace::kernels {
namespace {

using Numbers = std::vector<double>;

Numbers normals(std::int64_t count, std::mt19937_64& engine) {
  std::normal_distribution<double> normal;
  Numbers out(static_cast<std::size_t>(count));
  for (double& x : out) x = normal(engine);
  return out;
}

/// A matrix [k, k] by rows, whole or as W C with W either way round.
struct Given {
  Numbers c, w, whole;
  GramRows rows;

  Given(std::int64_t k, std::int64_t p, bool turned, std::mt19937_64& engine) {
    const std::int64_t stride = k + 3;
    whole.assign(static_cast<std::size_t>(k * k), 0);
    c = normals((p > 0 ? p : k) * stride, engine);
    rows.c_row = stride;
    if (p > 0) w = normals(k * p, engine);
    rows.w_row = turned ? 1 : p, rows.w_column = turned ? k : 1, rows.p = p;
    for (std::int64_t i = 0; i < k; ++i) {
      for (std::int64_t j = 0; j < k; ++j) {
        double& x = whole[static_cast<std::size_t>(i * k + j)];
        if (p == 0) x = c[static_cast<std::size_t>(i * stride + j)];
        for (std::int64_t l = 0; l < p; ++l) {
          x += w[static_cast<std::size_t>(i * rows.w_row + l * rows.w_column)] *
               c[static_cast<std::size_t>(l * stride + j)];
        }
      }
    }
    rows.c = c.data();
    rows.w = p > 0 ? w.data() : nullptr;
  }
};

/// Angles of planes, and a list of offsets, as tables.
struct Turns {
  std::int64_t planes, rest;
  Numbers theta, offsets, mean_cos, mean_sin, cos, sin;
  double scale;

  Turns(std::int64_t planes_in, std::int64_t rest_in, const Numbers& list, double scale_in)
      : planes(planes_in), rest(rest_in), offsets(list), scale(scale_in) {
    for (std::int64_t f = 0; f < planes; ++f) theta.push_back(std::pow(0.7, f));
    for (const double delta : offsets) {
      Numbers c, s;
      fill(delta, c, s);
      cos.insert(cos.end(), c.begin(), c.end());
      sin.insert(sin.end(), s.begin(), s.end());
      mean_cos.resize(c.size()), mean_sin.resize(s.size());
      for (std::size_t i = 0; i < c.size(); ++i) {
        mean_cos[i] += c[i] / static_cast<double>(offsets.size());
        mean_sin[i] += s[i] / static_cast<double>(offsets.size());
      }
    }
  }

  void fill(double delta, Numbers& c, Numbers& s) const {
    const auto numbers = static_cast<std::size_t>(turn_numbers(planes, rest));
    c.assign(numbers, 0), s.assign(numbers, 0);
    const auto put = [&](std::int64_t place, double angle, double factor) {
      c[static_cast<std::size_t>(place)] = factor * std::cos(delta * angle);
      s[static_cast<std::size_t>(place)] = factor * std::sin(delta * angle);
    };
    const double both = scale * scale;
    for (std::int64_t f = 0; f < planes; ++f) {
      const std::int64_t row = f * turn_row(planes, rest);
      const double own = theta[static_cast<std::size_t>(f)];
      for (std::int64_t g = 0; g < planes; ++g) {
        put(row + g, own - theta[static_cast<std::size_t>(g)], both * both);
        put(row + planes + g, own + theta[static_cast<std::size_t>(g)], both * both);
      }
      for (std::int64_t o = 0; o < rest; ++o) put(row + 2 * planes + o, own, both);
    }
    for (std::int64_t o = 0; o < rest; ++o) {
      const std::int64_t row = planes * turn_row(planes, rest) + o * turn_row_of_rest(planes);
      for (std::int64_t g = 0; g < planes; ++g) {
        put(row + g, theta[static_cast<std::size_t>(g)], both);
      }
    }
  }

  TurnTables tables() const {
    return {.planes = planes,
            .rest = rest,
            .mean_cos = mean_cos.data(),
            .mean_sin = mean_sin.data(),
            .cos = cos.data(),
            .sin = sin.data(),
            .offsets = static_cast<std::int64_t>(offsets.size()),
            .still = scale * scale * scale * scale};
  }

  /// sum of L o (T R T^T), the rotation T [k, k] of row vectors formed.
  double inner(const Numbers& left, const Numbers& right, double delta) const {
    const std::int64_t k = 2 * planes + rest;
    Numbers t(static_cast<std::size_t>(k * k), 0);
    const auto at = [k](std::int64_t i, std::int64_t j) {
      return static_cast<std::size_t>(i * k + j);
    };
    for (std::int64_t f = 0; f < planes; ++f) {
      const double angle = delta * theta[static_cast<std::size_t>(f)], both = scale * scale;
      t[at(f, f)] = t[at(planes + f, planes + f)] = both * std::cos(angle);
      t[at(f, planes + f)] = both * std::sin(angle);
      t[at(planes + f, f)] = -both * std::sin(angle);
    }
    for (std::int64_t o = 2 * planes; o < k; ++o) t[at(o, o)] = 1;
    double sum = 0;
    for (std::int64_t i = 0; i < k; ++i) {
      for (std::int64_t j = 0; j < k; ++j) {
        double turned = 0;
        for (std::int64_t a = 0; a < k; ++a) {
          if (t[at(i, a)] == 0) continue;
          for (std::int64_t b = 0; b < k; ++b)
            turned += t[at(i, a)] * right[at(a, b)] * t[at(j, b)];
        }
        sum += left[at(i, j)] * turned;
      }
    }
    return sum;
  }
};

struct Case {
  std::int64_t planes, rest, lefts, rights;
  double scale;
};

class TurnedGramsOf : public ::testing::TestWithParam<Case> {};

std::vector<Isa> both_versions() {
  std::vector<Isa> all = {Isa::portable};
  if (isa_available(Isa::avx2)) all.push_back(Isa::avx2);
  return all;
}

double length(const Numbers& x) {
  double square = 0;
  for (const double v : x) square += v * v;
  return std::sqrt(square);
}

TEST_P(TurnedGramsOf, AreThoseOfFormedRotations) {
  const Case& c = GetParam();
  const std::int64_t k = 2 * c.planes + c.rest;
  std::mt19937_64 engine(static_cast<std::uint64_t>(k));
  std::vector<Given> left, right;
  for (std::int64_t i = 0; i < c.lefts; ++i) left.emplace_back(k, i % 3 * 3, i % 2 == 0, engine);
  for (std::int64_t i = 0; i < c.rights; ++i) right.emplace_back(k, i % 3 * 2, i % 2 == 1, engine);
  const Turns turns(c.planes, c.rest, {0, 1, 2.5, -7}, c.scale);
  const std::int64_t mixes = 3, offsets = 4;
  const Numbers left_mix = normals(mixes * c.lefts, engine),
                right_mix = normals(mixes * c.rights, engine);
  std::vector<GramRows> l, r;
  double norms_left = 0, norms_right = 0;
  for (const Given& x : left) l.push_back(x.rows), norms_left += length(x.whole);
  for (const Given& x : right) r.push_back(x.rows), norms_right += length(x.whole);
  const double bound = 40 * static_cast<double>(k) * std::numeric_limits<double>::epsilon() *
                       std::pow(c.scale, 4) * norms_left * norms_right;
  for (const Isa isa : both_versions()) {
    const auto count = static_cast<std::size_t>(c.lefts * c.rights);
    Numbers mean(count, 7), each(static_cast<std::size_t>(2 * offsets), 7),
        planes(static_cast<std::size_t>(c.planes + 1) * count, 7), scratch(5, 9);
    const TurnedGrams p{.left = l.data(),
                        .lefts = c.lefts,
                        .right = r.data(),
                        .rights = c.rights,
                        .tables = turns.tables(),
                        .mean = mean.data(),
                        .left_mix = left_mix.data(),
                        .right_mix = right_mix.data(),
                        .mixes = mixes,
                        .each = each.data(),
                        .planes = planes.data()};
    turned_grams(p, scratch, isa);
    Numbers wanted(static_cast<std::size_t>(2 * offsets), 0);
    for (std::size_t i = 0; i < left.size(); ++i) {
      for (std::size_t j = 0; j < right.size(); ++j) {
        double sum = 0;
        for (std::size_t o = 0; o < turns.offsets.size(); ++o) {
          const double own = turns.inner(left[i].whole, right[j].whole, turns.offsets[o]);
          sum += own / static_cast<double>(offsets);
          for (std::size_t m = 0; m < 3; ++m) {
            wanted[2 * o + (m > 0 ? 1 : 0)] +=
                left_mix[m * left.size() + i] * right_mix[m * right.size() + j] * own;
          }
        }
        const double found = mean[i * right.size() + j];
        EXPECT_TRUE(std::abs(found - sum) <= bound) << i << " " << j << ": " << found - sum;
      }
    }
    for (std::size_t o = 0; o < wanted.size(); ++o) {
      EXPECT_TRUE(std::abs(each[o] - wanted[o]) <= 20 * bound) << o << ": " << each[o] - wanted[o];
    }
    // Planes by themselves: of matrices with a plane's block alone, over a whole turn.
    for (std::int64_t f = 0; f < c.planes; ++f) {
      const auto of = [&](const Given& x) {
        Numbers alone(x.whole.size(), 0);
        for (const std::int64_t i : {f, c.planes + f}) {
          for (const std::int64_t j : {f, c.planes + f}) {
            alone[static_cast<std::size_t>(i * k + j)] =
                x.whole[static_cast<std::size_t>(i * k + j)];
          }
        }
        return alone;
      };
      const double turn = std::acos(-1.0) / 2 / turns.theta[static_cast<std::size_t>(f)];
      double sum = 0;
      for (int quarter = 0; quarter < 4; ++quarter) {
        sum += turns.inner(of(left[0]), of(right[0]), quarter * turn) / 4;
      }
      const double found = planes[static_cast<std::size_t>(f) * count];
      EXPECT_TRUE(std::abs(found - sum) <= bound) << "plane " << f << ": " << found - sum;
    }
    double still = 0;
    for (std::int64_t i = 2 * c.planes; i < k; ++i) {
      for (std::int64_t j = 2 * c.planes; j < k; ++j) {
        still += left[0].whole[static_cast<std::size_t>(i * k + j)] *
                 right[0].whole[static_cast<std::size_t>(i * k + j)];
      }
    }
    EXPECT_TRUE(std::abs(planes[static_cast<std::size_t>(c.planes) * count] - still) <= bound);

    // The mean alone is the same bits, whatever the scratch held.
    Numbers alone(count, 3);
    TurnedGrams only = p;
    only.mean = alone.data();
    only.each = only.planes = nullptr;
    turned_grams(only, scratch, isa);
    EXPECT_EQ(alone, mean);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, TurnedGramsOf,
                         ::testing::Values(Case{8, 0, 3, 4, 1}, Case{5, 0, 1, 1, 1.2},
                                           Case{0, 9, 2, 5, 1}, Case{3, 4, 4, 3, 1},
                                           Case{4, 3, 5, 9, 0.8}, Case{1, 1, 1, 2, 1},
                                           Case{16, 7, 3, 5, 1}),
                         [](const auto& info) {
                           return std::to_string(info.param.planes) + "planes" +
                                  std::to_string(info.param.rest) + "rest" +
                                  std::to_string(info.param.lefts) + "by" +
                                  std::to_string(info.param.rights);
                         });

TEST(TurnedGrams, NanGivesNan) {
  std::mt19937_64 engine(1);
  Given left(6, 2, false, engine), right(6, 0, false, engine);
  left.c[4] = std::numeric_limits<double>::quiet_NaN();
  const Turns turns(2, 2, {0, 3}, 1);
  double mean = 0;
  Numbers scratch;
  turned_grams({.left = &left.rows,
                .lefts = 1,
                .right = &right.rows,
                .rights = 1,
                .tables = turns.tables(),
                .mean = &mean},
               scratch);
  EXPECT_TRUE(std::isnan(mean));
}

}  // namespace
}  // namespace subspace::kernels
