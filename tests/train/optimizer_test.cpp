// AdamW against its equations, in plain loops and double precision.

#include "train/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace subspace::train {
namespace {

struct Fixture {
  Fixture() : parameters({.tensor = at::TensorOptions().dtype(at::kDouble), .range = 1}) {
    matrix = parameters.weight("matrix", {3, 4});
    norm = parameters.norm("norm", {5});
    settings.weight_decay = 0.1;
    settings.max_grad_norm = 2;
  }
  nn::Parameters parameters;
  at::Tensor matrix, norm;
  Settings settings;
};

/// One number's AdamW.
struct Plain {
  double value, decay, mean = 0, square = 0;
  int steps = 0;
  void step(double gradient, double rate, const Settings& s) {
    ++steps;
    mean = s.beta1 * mean + (1 - s.beta1) * gradient;
    square = s.beta2 * square + (1 - s.beta2) * gradient * gradient;
    value -= rate * decay * value;
    const double m = mean / (1 - std::pow(s.beta1, steps));
    const double v = square / (1 - std::pow(s.beta2, steps));
    value -= rate * m / (std::sqrt(v) + s.eps);
  }
};

TEST(Optimizer, FollowsTheEquations) {
  Fixture f;
  Optimizer optimizer(f.parameters, f.settings);
  std::vector<Plain> plain;
  auto collect = [&](const at::Tensor& tensor, double decay) {
    for (std::int64_t i = 0; i < tensor.numel(); ++i) {
      plain.push_back({tensor.detach().flatten()[i].item<double>(), decay});
    }
  };
  collect(f.matrix, 0.1);
  collect(f.norm, 0);
  for (int step = 0; step < 5; ++step) {
    const double rate = 0.01 * (step + 1), size = step == 2 ? 0.1 : 3.0;
    std::vector<double> gradients(plain.size(), 0);
    for (int pass = 0; pass < 2; ++pass) {  // accumulated
      f.matrix.mutable_grad() = at::randn({3, 4}, at::kDouble) * size;
      f.norm.mutable_grad() = at::randn({5}, at::kDouble) * size;
      const at::Tensor all = at::cat({f.matrix.grad().flatten(), f.norm.grad()});
      for (std::size_t i = 0; i < plain.size(); ++i) {
        gradients[i] += all[static_cast<std::int64_t>(i)].item<double>();
      }
      optimizer.collect();
      EXPECT_FALSE(f.matrix.grad().defined());
    }
    double norm = 0;
    for (const double g : gradients) norm += g * g;
    norm = std::sqrt(norm);
    const double found = optimizer.step(rate).item<double>();
    EXPECT_TRUE(std::abs(found - norm) <= 1e-12 * norm) << found << " and " << norm;
    const double clip = std::min(1.0, 2 / (norm + 1e-6));
    for (std::size_t i = 0; i < plain.size(); ++i) {
      plain[i].step(gradients[i] * clip, rate, f.settings);
    }
    const at::Tensor values = at::cat({f.matrix.detach().flatten(), f.norm.detach()});
    for (std::size_t i = 0; i < plain.size(); ++i) {
      const double value = values[static_cast<std::int64_t>(i)].item<double>();
      EXPECT_TRUE(std::abs(value - plain[i].value) <= 1e-7) << i << " at step " << step;
    }
  }
}

TEST(Optimizer, AGradientThatIsNotFiniteChangesNothing) {
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    Fixture f;
    Optimizer optimizer(f.parameters, f.settings);
    const at::Tensor before = f.matrix.detach().clone();
    at::Tensor gradient = at::ones({3, 4}, at::kDouble);
    gradient[1][2] = bad;
    f.matrix.mutable_grad() = gradient;
    optimizer.collect();
    EXPECT_FALSE(std::isfinite(optimizer.step(0.1).item<double>()));
    EXPECT_TRUE(at::equal(f.matrix.detach(), before));
    for (const auto& [name, tensor] : optimizer.state()) {
      EXPECT_TRUE(at::equal(tensor, at::zeros_like(tensor))) << name;
    }
  }
}

TEST(Optimizer, BfloatModelsKeepWhatTheirWeightsCannotHold) {
  nn::Parameters parameters({.tensor = at::TensorOptions().dtype(at::kBFloat16), .range = 1});
  at::Tensor weight = parameters.norm("norm", {1});
  Settings settings;
  settings.max_grad_norm = 0;
  Optimizer optimizer(parameters, settings);
  for (int step = 0; step < 100; ++step) {
    weight.mutable_grad() = at::ones({1}, at::kBFloat16);
    optimizer.collect();
    optimizer.step(1e-4);  // less than bfloat16 can take off 1
  }
  EXPECT_NEAR(weight.detach().item<double>(), 0.99, 0.004);
}

}  // namespace
}  // namespace subspace::train
