// Both orders of the layer in double precision, forward and backward, and against finite
// differences: the reference that everything else is compared with has to be right itself.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/random.h"
#include "kernels/ethos_reference.h"

namespace subspace::kernels {
namespace {

Doubles normals(std::int64_t count, double scale, std::uint64_t seed) {
  Random random(seed, 9);
  Doubles values(static_cast<std::size_t>(count));
  for (double& value : values) value = scale * random.normal();
  return values;
}

struct Shape {
  std::int64_t tokens, heads, k, experts, width, hidden, latent;
};

EthosLayer make_layer(const Shape& s, std::uint64_t seed) {
  EthosLayer l;
  const std::int64_t selections = s.heads * s.k;
  l.routed = {s.tokens, selections, s.experts, s.width, normals(s.tokens * selections, 1, seed),
              {}};
  Random random(seed, 10);
  for (std::int64_t m = 0; m < s.tokens * selections; ++m) {
    l.routed.index.push_back(
        static_cast<std::int64_t>(random.uniform() * static_cast<double>(s.experts)));
  }
  l.hidden = s.hidden;
  l.latent = s.latent;
  l.heads = s.heads;
  const auto by = [](std::int64_t n) { return 1 / std::sqrt(static_cast<double>(n)); };
  l.x = normals(s.tokens * s.width, 1, seed + 1);
  l.z = normals(s.experts * s.latent, 1, seed + 2);
  l.w1 = normals(s.latent * s.hidden, by(s.latent), seed + 3);
  l.w_u = normals(s.width * s.hidden, by(s.hidden), seed + 4);
  l.w_v = normals(s.hidden * s.width, by(s.hidden), seed + 5);
  return l;
}

/// Within 1e-12 of the largest value.
void expect_same(const Doubles& a, const Doubles& b, const char* what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  double largest = 0;
  for (const double value : b) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_FALSE(!(std::abs(a[i] - b[i]) <= 1e-12 * largest)) << what << " at " << i;
  }
}

constexpr Shape kShapes[] = {{5, 2, 3, 9, 8, 6, 4},    {1, 1, 1, 1, 1, 1, 1},
                             {7, 1, 5, 4, 12, 16, 3},  {3, 4, 2, 50, 5, 24, 10},
                             {2, 3, 4, 16, 33, 7, 11}, {9, 2, 2, 3, 4, 4, 4}};

TEST(EthosLayer, BothOrdersGiveTheSameOutput) {
  std::uint64_t seed = 0;
  for (const Shape& shape : kShapes) {
    const EthosLayer layer = make_layer(shape, ++seed * 100);
    expect_same(ethos_layer_naive(layer), ethos_layer_reordered(layer), "y");
  }
}

TEST(EthosLayer, BothOrdersGiveTheSameGradients) {
  std::uint64_t seed = 0;
  for (const Shape& shape : kShapes) {
    const EthosLayer layer = make_layer(shape, ++seed * 100);
    const Doubles grad = normals(shape.tokens * shape.width, 1, seed);
    const EthosLayerGrad a = ethos_layer_naive_grad(layer, grad);
    const EthosLayerGrad b = ethos_layer_reordered_grad(layer, grad);
    expect_same(a.x, b.x, "x");
    expect_same(a.scores, b.scores, "scores");
    expect_same(a.z, b.z, "z");
    expect_same(a.w1, b.w1, "w1");
    expect_same(a.w_u, b.w_u, "w_u");
    expect_same(a.w_v, b.w_v, "w_v");
  }
}

TEST(EthosLayer, GradientsAreThoseOfFiniteDifferences) {
  EthosLayer layer = make_layer(kShapes[0], 4711);
  const Doubles grad = normals(kShapes[0].tokens * kShapes[0].width, 1, 1);
  const EthosLayerGrad got = ethos_layer_reordered_grad(layer, grad);
  const auto loss = [&] {
    const Doubles y = ethos_layer_naive(layer);
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * grad[i];
    return sum;
  };
  const auto check = [&](Doubles& values, const Doubles& gradient, const char* what) {
    ASSERT_EQ(values.size(), gradient.size()) << what;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double step = 1e-5;
      const double kept = values[i];
      values[i] = kept + step;
      const double above = loss();
      values[i] = kept - step;
      const double below = loss();
      values[i] = kept;
      // The third derivative times step^2 and the loss's rounding over step: far below 1e-7.
      ASSERT_FALSE(!(std::abs((above - below) / (2 * step) - gradient[i]) <=
                     1e-7 * (1 + std::abs(gradient[i]))))
          << what << " at " << i;
    }
  };
  check(layer.x, got.x, "x");
  check(layer.routed.scores, got.scores, "scores");
  check(layer.z, got.z, "z");
  check(layer.w1, got.w1, "w1");
  check(layer.w_u, got.w_u, "w_u");
  check(layer.w_v, got.w_v, "w_v");
}

}  // namespace
}  // namespace subspace::kernels
