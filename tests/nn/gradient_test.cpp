// Gradients of every variant against central differences, in float64.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "nn/tiny_models.h"

namespace subspace::nn {
namespace {

class Gradient : public ::testing::TestWithParam<testing::Variant> {};

at::Tensor direction_like(const at::Tensor& value) {
  Random random(11, static_cast<std::uint64_t>(value.numel()));
  at::Tensor out = at::empty(value.sizes(), at::kDouble);
  auto* values = out.data_ptr<double>();
  for (std::int64_t i = 0; i < out.numel(); ++i) values[i] = random.normal();
  return out / out.norm();
}

TEST_P(Gradient, EqualsCentralDifferences) {
  const auto model = testing::tiny_model(GetParam().config());
  const Input input = testing::tiny_input(model->config());
  testing::tiny_loss(*model, input).backward();
  const at::NoGradGuard no_gradient;
  // (f(x + h) - f(x - h)) / 2h is off by h^2 f'''/6 and by rounding, eps |f| / h.
  constexpr double kStep = 1e-5;
  for (const Parameter& parameter : model->parameters().all()) {
    if (!parameter.trained) continue;
    const at::Tensor gradient = parameter.value.grad();
    ASSERT_TRUE(gradient.defined()) << parameter.name() << " has no gradient";
    const at::Tensor direction = direction_like(parameter.value);
    at::Tensor value = parameter.value;
    value.add_(direction, kStep);
    const double above = testing::tiny_loss(*model, input).item<double>();
    value.sub_(direction, 2 * kStep);
    const double below = testing::tiny_loss(*model, input).item<double>();
    value.add_(direction, kStep);
    const double found = (gradient * direction).sum().item<double>();
    const double expected = (above - below) / (2 * kStep);
    const double scale = std::abs(expected) + gradient.norm().item<double>();
    EXPECT_TRUE(std::abs(found - expected) <= 1e-7 * scale + 1e-8)
        << parameter.name() << ": " << found << " and " << expected;
  }
}

TEST_P(Gradient, OfThePaddedVocabularyIsExactlyZero) {
  const auto model = testing::tiny_model(GetParam().config());
  testing::tiny_loss(*model, testing::tiny_input(model->config())).backward();
  int padded = 0;
  for (const Parameter& parameter : model->parameters().all()) {
    const Parameter::Part& last = parameter.parts.back();
    const std::int64_t used = last.begin + last.rows, rows = parameter.value.size(0);
    if (used == rows) continue;
    ++padded;
    EXPECT_EQ(rows % 64, 0) << parameter.name();
    const at::Tensor rest = parameter.value.grad().narrow(0, used, rows - used);
    EXPECT_TRUE(at::equal(rest, at::zeros_like(rest))) << parameter.name();
  }
  EXPECT_EQ(padded > 0, !model->config().image.has_value());
}

INSTANTIATE_TEST_SUITE_P(Variants, Gradient, ::testing::ValuesIn(testing::variants()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace subspace::nn
