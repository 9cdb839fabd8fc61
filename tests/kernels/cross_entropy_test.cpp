// Loss and gradient of logits against plain double precision.
#include "kernels/cross_entropy.h"

#include <limits>

#include "kernels/training_kernels.h"

namespace subspace::kernels {
namespace {

constexpr double kFactor = 0.03125;

struct Case {
  std::int64_t rows, columns, stride;
  Doubles logits;
  std::vector<std::int64_t> targets;
};

/// What stands in the padding must not matter: it is large.
Case make_case(Element element, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  Case c{rows, columns, stride, normals(element, rows * stride, 3, 9), {}};
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = columns; i < stride; ++i) {
      c.logits[static_cast<std::size_t>(row * stride + i)] = 100;
    }
    c.targets.push_back(row % 5 == 3 ? -100 : (row * 7919) % columns);
  }
  return c;
}

struct Result {
  Doubles loss, logits;
};

Result run(Backend backend, Element element, const Case& c, bool gradient) {
  Bytes logits(backend, encode(element, c.logits));
  Buffer<std::int64_t> targets(backend, c.targets);
  Buffer<float> factor(backend, std::vector<float>{static_cast<float>(kFactor)});
  Buffer<float> loss(backend, c.rows);
  const CrossEntropy p{.logits = logits.data(),
                       .targets = targets.data(),
                       .factor = gradient ? factor.data() : nullptr,
                       .loss = loss.data(),
                       .rows = c.rows,
                       .columns = c.columns,
                       .stride = c.stride,
                       .element = element};
  SUBSPACE_RUN_ON(backend, cross_entropy, p);
  return {wide(loss.values()), decode(element, logits.values())};
}

void expect_reference(const Case& c, Element element, const Result& got) {
  const CrossEntropyResult want =
      cross_entropy_reference(c.logits, c.targets, c.columns, c.stride, kFactor);
  const double u = unit();
  Doubles loss_bound, bound;
  for (std::size_t row = 0; row < want.loss.size(); ++row) {
    const double* x = c.logits.data() + row * static_cast<std::size_t>(c.stride);
    double most = 0;
    for (std::int64_t i = 0; i < c.columns; ++i) most = std::max(most, std::abs(x[i]));
    // Exponentials of differences up to 2 most, a sum of positive terms, and its logarithm.
    const double sum_error = (static_cast<double>(c.columns) + 8 + 6 * most) * u;
    const double off = sum_error + 4 * u * (2 * most + std::abs(want.loss[row]));
    loss_bound.push_back(c.targets[row] < 0 ? 0 : off);
    for (std::int64_t i = 0; i < c.stride; ++i) {
      const double value =
          want.gradient[row * static_cast<std::size_t>(c.stride) + static_cast<std::size_t>(i)];
      const bool counts = c.targets[row] >= 0 && i < c.columns;
      const double p = std::abs(value) + (i == c.targets[row] ? kFactor : 0);
      bound.push_back(counts ? (off + (8 + 4 * most) * u) * p + stored(element) * std::abs(value) +
                                   kFactor * u
                             : 0);
    }
  }
  expect_within(got.loss, want.loss, loss_bound, "loss");
  expect_within(got.logits, want.gradient, bound, "gradient");
}

class CrossEntropyOn : public OnBackend {};

TEST_P(CrossEntropyOn, AgreesWithTheReferenceForAllVocabularies) {
  struct Shape {
    std::int64_t rows, columns, stride;
  };
  for (const Shape& s : {Shape{6, 1, 8}, Shape{11, 45, 64}, Shape{5, 4096, 4096},
                         Shape{4, 30522, 30528}, Shape{4, 50257, 50304}, Shape{4, 70001, 70016}}) {
    SCOPED_TRACE(s.columns);
    const Case c = make_case(element(), s.rows, s.columns, s.stride);
    expect_reference(c, element(), run(backend(), element(), c, true));
  }
}

TEST_P(CrossEntropyOn, WithoutFactorTheLogitsStay) {
  const Case c = make_case(element(), 7, 100, 104);
  const Result got = run(backend(), element(), c, false);
  EXPECT_EQ(got.logits, c.logits);
  EXPECT_EQ(got.loss, run(backend(), element(), c, true).loss);
}

TEST_P(CrossEntropyOn, ExtremesAreNoNan) {
  Case c = make_case(element(), 3, 16, 16);
  c.targets = {0, 1, 2};
  for (std::size_t i = 0; i < 16; ++i) c.logits[i] = i == 0 ? 1e30 : -1e30;
  for (std::size_t i = 0; i < 16; ++i) {
    c.logits[16 + i] = i == 1 ? 5 : -std::numeric_limits<double>::infinity();
  }
  const Result got = run(backend(), element(), c, true);
  EXPECT_EQ(got.loss[0], 0);
  EXPECT_EQ(got.loss[1], 0);
  for (std::size_t i = 0; i < 32; ++i) EXPECT_EQ(got.logits[i], 0) << i;
}

TEST_P(CrossEntropyOn, NanAndTargetsOutOfRangeStayWithTheirRow) {
  Case c = make_case(element(), 4, 40, 40);
  c.targets = {3, 40, 5, 6};
  c.logits[2 * 40 + 39] = std::numeric_limits<double>::quiet_NaN();
  const Result got = run(backend(), element(), c, true);
  EXPECT_FALSE(std::isnan(got.loss[0]));
  EXPECT_TRUE(std::isnan(got.loss[1]));
  EXPECT_TRUE(std::isnan(got.loss[2]));
  EXPECT_TRUE(std::isnan(got.logits[2 * 40]));
  EXPECT_FALSE(std::isnan(got.loss[3]));
}

SUBSPACE_ON_BACKENDS(CrossEntropyOn);

}  // namespace
}  // namespace subspace::kernels
