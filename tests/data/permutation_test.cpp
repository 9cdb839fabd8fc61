#include "data/permutation.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "data/data_folder.h"

namespace subspace {
namespace {
using test::error_of, test::expect_says;

std::vector<std::uint64_t> all(std::uint64_t size, std::uint64_t seed, std::uint64_t epoch) {
  const Permutation permutation(size, seed, epoch);
  std::vector<std::uint64_t> values(size);
  for (std::uint64_t i = 0; i < size; ++i) values[i] = permutation(i);
  return values;
}

TEST(PermutationTest, EveryValueOnce) {
  for (std::uint64_t size = 1; size <= 300; ++size) {
    std::vector<std::uint64_t> values = all(size, 7, size % 3);
    std::sort(values.begin(), values.end());
    for (std::uint64_t i = 0; i < size; ++i) ASSERT_EQ(values[i], i) << size;
  }
  std::vector<std::uint64_t> values = all(100'003, 1, 0);
  std::sort(values.begin(), values.end());
  for (std::uint64_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], i);
}

TEST(PermutationTest, LargeRangesStayInside) {
  const std::uint64_t size = (std::uint64_t{1} << 61) + 12345;
  const Permutation permutation(size, 3, 4);
  std::set<std::uint64_t> seen;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const std::uint64_t value = permutation(size - 1 - i);
    EXPECT_LT(value, size);
    seen.insert(value);
  }
  EXPECT_EQ(seen.size(), 1000u);
}

TEST(PermutationTest, SeedsAndEpochsDiffer) {
  const auto one = all(1000, 1, 0);
  EXPECT_EQ(one, all(1000, 1, 0));
  for (const auto& other : {all(1000, 2, 0), all(1000, 1, 1)}) {
    int equal = 0;
    for (std::size_t i = 0; i < one.size(); ++i) equal += one[i] == other[i];
    // Two random permutations agree at one place on average, Poisson: above 10 has odds of 1e-8.
    EXPECT_LE(equal, 10);
  }
}

// Where each of 12 values goes, over 12,000 seeds: 144 cells of 1000, chi squared with 121 degrees
// of freedom, mean 121, standard deviation 15.6.
TEST(PermutationTest, PlacesAreUniform) {
  constexpr std::size_t kSize = 12;
  constexpr int kSeeds = 12'000;
  std::vector<double> cells(kSize * kSize);
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    const auto values = all(kSize, seed, 0);
    for (std::size_t i = 0; i < kSize; ++i) ++cells[i * kSize + values[i]];
  }
  double chi = 0;
  for (const double cell : cells) chi += (cell - 1000) * (cell - 1000) / 1000;
  EXPECT_GT(chi, 121 - 5 * 15.6);
  EXPECT_LT(chi, 121 + 5 * 15.6);
}

// Neighbours in the file must not stay neighbours in a batch.
TEST(PermutationTest, NeighboursAreParted) {
  const auto values = all(10'000, 5, 0);
  double sum = 0, squares = 0, products = 0;
  const double mean = 9999.0 / 2;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double x = static_cast<double>(values[i]) - mean;
    const double y = static_cast<double>(values[(i + 1) % values.size()]) - mean;
    sum += x, squares += x * x, products += x * y;
  }
  EXPECT_DOUBLE_EQ(sum, 0);
  // Correlation of a random order: standard deviation 1 / sqrt(n) = 0.01.
  EXPECT_LT(std::abs(products / squares), 0.05);
}

TEST(PermutationTest, WrongUseIsRefused) {
  expect_says(error_of([] { Permutation(0, 1, 0); }), ErrorCode::Internal, "permutation of 0");
  expect_says(error_of([] { Permutation(5, 1, 0)(5); }), ErrorCode::Internal, "place 5");
}

TEST(SampleOrderTest, EveryRowOnceAnEpoch) {
  const std::int64_t rows = 37;
  const SampleOrder order(rows, 11);
  for (std::uint64_t epoch = 0; epoch < 4; ++epoch) {
    std::vector<std::int64_t> seen(rows);
    order.rows(epoch * rows, seen);
    std::sort(seen.begin(), seen.end());
    for (std::int64_t i = 0; i < rows; ++i) ASSERT_EQ(seen[static_cast<std::size_t>(i)], i);
  }
}

TEST(SampleOrderTest, AStepDependsOnSeedAndStepAlone) {
  const SampleOrder order(37, 11);
  std::vector<std::int64_t> run(5 * 16), step(16);
  order.rows(0, run);
  for (const std::uint64_t n : {4, 0, 2}) {  // in any order; step 2 spans two epochs
    SampleOrder(37, 11).rows(n * 16, step);
    EXPECT_TRUE(std::equal(step.begin(), step.end(), run.begin() + static_cast<long>(n * 16)));
  }
  SampleOrder(37, 12).rows(0, step);
  EXPECT_FALSE(std::equal(step.begin(), step.end(), run.begin()));
}

// From a second implementation, in Python: a stored run must find its rows again with any version.
TEST(SampleOrderTest, IsFixedForEver) {
  std::vector<std::int64_t> rows(8);
  SampleOrder(1000, 42).rows(996, rows);
  EXPECT_EQ(rows, (std::vector<std::int64_t>{670, 301, 900, 949, 191, 9, 982, 369}));
}

}  // namespace
}  // namespace subspace
