// The small decompositions against the library's, and what does not depend on threads.
#include "lora/head_spectra.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/small_eigenvalues.h"
#include "kernels/small_svd.h"
#include "lora/heads_run.h"
#include "lora/random_layer.h"

namespace subspace {
namespace {

using testing::expect_close;
using testing::normal;
using testing::RandomLayer;

at::Tensor tensor_of(const std::vector<double>& values) { return at::tensor(values, at::kDouble); }

/// Rows of size 1 to 1e-12.
at::Tensor graded(std::int64_t m, std::int64_t n) {
  return normal({m, n}) * at::logspace(0, -12, m, 10, at::kDouble).unsqueeze(1);
}

std::vector<at::Tensor> matrices(std::int64_t m, std::int64_t n) {
  const std::int64_t half = std::min(m, n) / 2;
  return {normal({m, n}), at::matmul(normal({m, half}), normal({half, n})), graded(m, n),
          at::eye(m, n, at::kDouble) + 1e-9 * normal({m, n}), at::zeros({m, n}, at::kDouble)};
}

TEST(SmallDecompositions, SingularValuesAndVectorsAreTheLibrarys) {
  kernels::SmallSvd svd;
  for (const auto& [m, n] : {std::pair{144, 144}, {160, 32}, {32, 160}, {77, 50}}) {
    for (const at::Tensor& a : matrices(m, n)) {
      const auto [u, s, vh] = at::linalg_svd(a, false);
      ASSERT_TRUE(svd.decompose(a.const_data_ptr<double>(), m, n, n));
      const double unit = std::max(s[0].item<double>(), 1e-300);
      expect_close(tensor_of(svd.values()) / unit, s / unit, kernels::small_svd_tolerance(m, n));
      // Of vectors only those of values with a distance to the others are determined.
      const double gap = ((s[0] - s[1]) / unit).item<double>();
      if (!(gap > 1e-3)) continue;
      at::Tensor left = at::empty({m, 1}, at::kDouble), right = at::empty({n, 1}, at::kDouble);
      svd.left(1, left.data_ptr<double>());
      svd.right(1, right.data_ptr<double>());
      const double bound = 4 * kernels::small_svd_tolerance(m, n) / gap;
      EXPECT_TRUE(1 - at::matmul(u.narrow(1, 0, 1).t(), left).abs().item<double>() <= bound);
      EXPECT_TRUE(1 - at::matmul(vh.narrow(0, 0, 1), right).abs().item<double>() <= bound);
    }
  }
}

TEST(SmallDecompositions, EigenvaluesAreTheLibrarys) {
  kernels::SmallEigenvalues own;
  for (const std::int64_t n : {1, 2, 9, 64, 128}) {
    const at::Tensor a = normal({n, n});
    ASSERT_TRUE(own.find(a.const_data_ptr<double>(), n, n));
    const at::Tensor found = at::complex(tensor_of(own.real()), tensor_of(own.imaginary()));
    const at::Tensor expected = at::linalg_eigvals(a);
    const at::Tensor apart = (found.unsqueeze(1) - expected.unsqueeze(0)).abs();
    // Those of a random matrix are far enough apart for each to be the nearest of just one.
    const double bound = 1e-11 * a.norm().item<double>();
    EXPECT_TRUE(apart.amin(0).max().item<double>() <= bound) << n;
    EXPECT_TRUE(apart.amin(1).max().item<double>() <= bound) << n;
  }
}

TEST(SmallDecompositions, TheRatioOfEigenvaluesByHand) {
  // 3 and -1; +-i; nothing; and where a number is not one.
  at::Tensor all = at::zeros({4, 2, 2}, at::kDouble);
  all[0] = testing::matrix({{3, 5}, {0, -1}});
  all[1] = testing::matrix({{0, 1}, {-1, 0}});
  all[3][0][1] = std::nan("");
  const at::Tensor found = eigenvalue_ratio(all);
  EXPECT_NEAR(found[0].item<double>(), 0.5, 1e-15);
  EXPECT_NEAR(found[1].item<double>(), 0, 1e-15);
  EXPECT_TRUE(std::isnan(found[2].item<double>()));
  EXPECT_TRUE(std::isnan(found[3].item<double>()));
}

/// Two circuits of a layer, on some number of threads.
std::vector<CircuitMetrics> on_threads(const RandomLayer& given, int threads) {
  const int before = at::get_num_threads();
  at::set_num_threads(threads);
  HeadsOptions options;
  options.window = {0};
  std::vector<CircuitMetrics> out;
  for (CircuitResult& circuit : layer_heads(given.layer, given.change, options).circuits) {
    out.push_back(std::move(circuit.metrics));
  }
  at::set_num_threads(before);
  return out;
}

TEST(SmallDecompositions, SpectraDoNotDependOnThreads) {
  const RandomLayer given(0, 90, 6, 3, 20, 20);
  const std::vector<CircuitMetrics> one = on_threads(given, 1);
  for (const int threads : {2, 3, 5}) {
    const std::vector<CircuitMetrics> other = on_threads(given, threads);
    ASSERT_EQ(one.size(), other.size());
    for (std::size_t c = 0; c < one.size(); ++c) {
      for (at::Tensor CircuitMetrics::*member :
           {&CircuitMetrics::values_base, &CircuitMetrics::values_adapted,
            &CircuitMetrics::values_delta, &CircuitMetrics::rank_delta,
            &CircuitMetrics::amplification, &CircuitMetrics::intruder_vec,
            &CircuitMetrics::intruder_sub, &CircuitMetrics::gram, &CircuitMetrics::eigen}) {
        EXPECT_TRUE(at::equal(one[c].*member, other[c].*member)) << one[c].circuit;
      }
    }
  }
}

TEST(SmallDecompositions, NanInTheWeightsIsNoResult) {
  RandomLayer given(0, 30, 2, 1, 5, 5);
  given.layer.v[0][3][2] = std::nan("");
  EXPECT_ANY_THROW(layer_heads(given.layer, given.change, {}));
}

}  // namespace
}  // namespace subspace
