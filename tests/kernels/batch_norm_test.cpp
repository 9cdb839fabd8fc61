// Batch norm of the queries of product keys, and its gradient, against plain double precision.
#include "kernels/batch_norm.h"

#include <limits>

#include "kernels/column_sums.h"
#include "kernels/training_kernels.h"

namespace subspace::kernels {
namespace {

constexpr double kEps = 1e-5;

struct Case {
  std::int64_t rows, heads, half;
  Doubles x, weight, bias, grad;
  std::int64_t width() const { return heads * 2 * half; }
};

/// `level` is how far from zero the columns are, in their spreads.
Case make_case(Element element, std::int64_t rows, std::int64_t heads, std::int64_t half,
               double level = 1) {
  const auto seed = static_cast<std::uint64_t>(rows * 131 + heads * 17 + half);
  Case c{rows, heads, half, {}, {}, {}, {}};
  c.x = normals(element, rows * c.width(), 1.5, seed);
  const Doubles levels = normals(element, c.width(), 1.5 * level, seed + 1);
  for (std::size_t i = 0; i < c.x.size(); ++i) {
    c.x[i] += levels[i % static_cast<std::size_t>(c.width())];
  }
  c.x = decode(element, encode(element, c.x));
  c.weight = normals(Element::f32, c.width(), 1, seed + 2);
  c.bias = normals(Element::f32, c.width(), 1, seed + 3);
  c.grad = normals(element, rows * c.width(), 1, seed + 4);
  return c;
}

/// What is laid out [rows, heads, 2, half], one side of it.
Doubles side_of(const Case& c, const Doubles& values, std::int64_t side) {
  Doubles out;
  for (std::int64_t head = 0; head < c.rows * c.heads; ++head) {
    const auto begin = values.begin() + (head * 2 + side) * c.half;
    out.insert(out.end(), begin, begin + c.half);
  }
  return out;
}

MomentsResult moments(Backend backend, Element element, const Case& c) {
  Bytes x(backend, encode(element, c.x));
  Buffer<float> mean(backend, c.width()), variance(backend, c.width());
  Buffer<float> partial(backend, column_moments_workspace(c.rows, c.width()));
  const ColumnMoments p{.x = x.data(),
                        .mean = mean.data(),
                        .variance = variance.data(),
                        .partial = partial.data(),
                        .rows = c.rows,
                        .width = c.width(),
                        .element = element};
  SUBSPACE_RUN_ON(backend, column_moments, p);
  return {wide(mean.values()), wide(variance.values())};
}

void expect_moments(const Case& c, const MomentsResult& got) {
  const MomentsResult want = column_moments_reference(c.x, c.width());
  const RowPieces cut = batch_norm_pieces(c.rows);
  const double terms = static_cast<double>(cut.rows + cut.pieces + 12) * unit();
  Doubles mean_bound, variance_bound;
  for (std::int64_t column = 0; column < c.width(); ++column) {
    double low = INFINITY, high = -INFINITY;
    for (std::int64_t row = 0; row < c.rows; ++row) {
      const double value = c.x[static_cast<std::size_t>(row * c.width() + column)];
      low = std::min(low, value);
      high = std::max(high, value);
    }
    // Differences from some row are at most the range, and the column's level does not matter.
    const double range = high - low, size = std::max(std::abs(low), std::abs(high));
    mean_bound.push_back(terms * range + unit() * size);
    variance_bound.push_back(3 * terms * range * range);
  }
  expect_within(got.mean, want.mean, mean_bound, "mean");
  expect_within(got.variance, want.variance, variance_bound, "variance");
}

struct Results {
  Doubles first, second, grad_x, weight, bias;
};

/// Forward and backward with given statistics.
Results run_on(Backend backend, Element element, const Case& c, const MomentsResult& stats,
               bool of_batch) {
  const std::int64_t bytes = c.rows * c.heads * c.half * element_bytes(element);
  Bytes x(backend, encode(element, c.x)), first(backend, bytes), second(backend, bytes);
  Bytes grad_first(backend, encode(element, side_of(c, c.grad, 0)));
  Bytes grad_second(backend, encode(element, side_of(c, c.grad, 1)));
  Bytes grad_x(backend, 2 * bytes);
  Buffer<float> mean(backend, floats(stats.mean)), variance(backend, floats(stats.variance));
  Buffer<float> weight(backend, floats(c.weight)), bias(backend, floats(c.bias));
  Buffer<float> grad_weight(backend, c.width()), grad_bias(backend, c.width());
  Buffer<float> partial(backend, column_moments_workspace(c.rows, c.width()));
  const BatchNormHalves p{.x = x.data(),
                          .mean = mean.data(),
                          .variance = variance.data(),
                          .weight = weight.data(),
                          .bias = bias.data(),
                          .first = first.data(),
                          .second = second.data(),
                          .rows = c.rows,
                          .heads = c.heads,
                          .half = c.half,
                          .eps = kEps,
                          .element = element};
  SUBSPACE_RUN_ON(backend, batch_norm_halves, p);
  const BatchNormHalvesGrad q{.forward = p,
                              .of_batch = of_batch,
                              .grad_first = grad_first.data(),
                              .grad_second = grad_second.data(),
                              .grad_x = grad_x.data(),
                              .grad_weight = grad_weight.data(),
                              .grad_bias = grad_bias.data(),
                              .partial = partial.data()};
  SUBSPACE_RUN_ON(backend, batch_norm_halves_grad, q);
  return {decode(element, first.values()), decode(element, second.values()),
          decode(element, grad_x.values()), wide(grad_weight.values()), wide(grad_bias.values())};
}

void expect_results(const Case& c, Element element, const MomentsResult& stats, bool of_batch,
                    const Results& got) {
  const BatchNormResult want =
      batch_norm_reference(c.x, stats, c.weight, c.bias, c.grad, kEps, of_batch);
  const auto width = static_cast<std::size_t>(c.width());
  const auto rows = static_cast<double>(c.rows);
  const double u = unit(), v = stored(element), sums = (rows + 16) * u;
  Doubles y_bound, x_bound, weight_bound(width), bias_bound(width), scale;
  for (const double variance : stats.variance) scale.push_back(1 / std::sqrt(variance + kEps));
  for (std::size_t i = 0; i < c.x.size(); ++i) {
    const double normal = std::abs(c.x[i] - stats.mean[i % width]) * scale[i % width];
    const double size = normal * std::abs(c.weight[i % width]) + std::abs(c.bias[i % width]);
    y_bound.push_back(10 * u * size + v * (std::abs(want.y[i]) + 10 * u * size));
    bias_bound[i % width] += sums * std::abs(c.grad[i]);
    weight_bound[i % width] += sums * std::abs(c.grad[i]) * normal;
  }
  for (std::size_t i = 0; i < c.x.size(); ++i) {
    const std::size_t column = i % width;
    const double normal = std::abs(c.x[i] - stats.mean[column]) * scale[column];
    const double share = of_batch ? 1 / rows : 0;
    const double bias = std::abs(want.bias[column]), weight = std::abs(want.weight[column]);
    const double terms = std::abs(c.grad[i]) + share * (bias + normal * weight);
    const double off =
        std::abs(c.weight[column]) * scale[column] *
        (12 * u * terms + share * (bias_bound[column] + normal * weight_bound[column]));
    x_bound.push_back(off + v * (std::abs(want.grad_x[i]) + off));
  }
  for (const std::int64_t side : {0, 1}) {
    expect_within(side == 0 ? got.first : got.second, side_of(c, want.y, side),
                  side_of(c, y_bound, side), side == 0 ? "first" : "second");
  }
  expect_within(got.bias, want.bias, bias_bound, "grad_bias");
  expect_within(got.weight, want.weight, weight_bound, "grad_weight");
  expect_within(got.grad_x, want.grad_x, x_bound, "grad_x");
}

/// Statistics as the kernels take them.
MomentsResult rounded(const MomentsResult& stats) {
  return {wide(floats(stats.mean)), wide(floats(stats.variance))};
}

class BatchNormOn : public OnBackend {};

TEST_P(BatchNormOn, AgreesWithTheReferenceForAllShapes) {
  // Halves that fill vectors, and some that do not; fewer and more rows than pieces.
  for (const auto& [rows, heads, half] : std::vector<std::array<std::int64_t, 3>>{{1, 1, 1},
                                                                                  {2, 3, 5},
                                                                                  {9, 2, 8},
                                                                                  {140, 1, 4},
                                                                                  {133, 4, 16},
                                                                                  {301, 2, 12},
                                                                                  {70, 3, 200}}) {
    SCOPED_TRACE(::testing::Message() << rows << " rows, " << heads << " heads, half " << half);
    const Case c = make_case(element(), rows, heads, half);
    expect_moments(c, moments(backend(), element(), c));
    const MomentsResult stats = rounded(column_moments_reference(c.x, c.width()));
    for (const bool of_batch : {true, false}) {
      expect_results(c, element(), stats, of_batch,
                     run_on(backend(), element(), c, stats, of_batch));
    }
  }
}

// The columns' means are far larger than their spreads: E[x^2] - E[x]^2 would have little or, a
// thousand times larger, nothing left.
TEST_P(BatchNormOn, KeepsTheVarianceOfColumnsFarFromZero) {
  const Case c = make_case(element(), 1000, 1, 8, element() == Element::f32 ? 1e5 : 20);
  expect_moments(c, moments(backend(), element(), c));
}

TEST_P(BatchNormOn, EqualRowsHaveNoVariance) {
  Case c = make_case(element(), 300, 1, 8);
  for (std::size_t i = 16; i < c.x.size(); ++i) c.x[i] = c.x[i % 16];
  const MomentsResult got = moments(backend(), element(), c);
  for (std::size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(got.mean[i], c.x[i]);
    EXPECT_EQ(got.variance[i], 0);
  }
}

TEST_P(BatchNormOn, SumsHaveTheSameBitsEveryTime) {
  const Case c = make_case(element(), 3000, 1, 32);
  const MomentsResult stats = moments(backend(), element(), c);
  const MomentsResult again = moments(backend(), element(), c);
  EXPECT_EQ(stats.mean, again.mean);
  EXPECT_EQ(stats.variance, again.variance);
  const Results one = run_on(backend(), element(), c, stats, true);
  const Results two = run_on(backend(), element(), c, stats, true);
  EXPECT_EQ(one.weight, two.weight);
  EXPECT_EQ(one.bias, two.bias);
  EXPECT_EQ(one.grad_x, two.grad_x);
}

TEST_P(BatchNormOn, NanStaysInItsColumn) {
  Case c = make_case(element(), 150, 2, 8);
  c.x[7 * 32 + 13] = std::numeric_limits<double>::quiet_NaN();
  const MomentsResult stats = moments(backend(), element(), c);
  for (std::size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(std::isnan(stats.mean[i]), i == 13);
    EXPECT_EQ(std::isnan(stats.variance[i]), i == 13);
  }
  const Results got = run_on(backend(), element(), c, stats, true);
  for (std::size_t i = 0; i < got.grad_x.size(); ++i) {
    ASSERT_EQ(std::isnan(got.grad_x[i]), i % 32 == 13);
  }
}

TEST_P(BatchNormOn, WithoutRowsThereAreNoMoments) {
  const Case c = make_case(element(), 0, 1, 8);
  const MomentsResult stats = moments(backend(), element(), c);
  for (const double mean : stats.mean) EXPECT_TRUE(std::isnan(mean));
  for (const double variance : stats.variance) EXPECT_TRUE(std::isnan(variance));
  const Results got = run_on(backend(), element(), c, stats, true);
  for (const double sum : got.weight) EXPECT_EQ(sum, 0);
  for (const double sum : got.bias) EXPECT_EQ(sum, 0);
}

SUBSPACE_ON_BACKENDS(BatchNormOn);

}  // namespace
}  // namespace subspace::kernels
