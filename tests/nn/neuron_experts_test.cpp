// Layers of single-neuron experts against the plain double-precision loops of src/kernels.

#include "nn/neuron_experts.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "kernels/ethos_reference.h"
#include "nn/tiny_models.h"

namespace subspace::nn {
namespace {

using kernels::Doubles;
using Kind = NeuronExpertsConfig::Kind;

constexpr std::int64_t kTokens = 7, kWidth = 32;

NeuronExpertsConfig small(Kind kind) {
  NeuronExpertsConfig config;
  config.kind = kind;
  config.experts = 36;
  config.heads = 3;
  config.per_head = 4;
  config.query = 10;
  config.latent = kind == Kind::ethos ? 5 : 32;
  config.hidden = 64;
  return config;
}

at::Tensor random_tensor(std::vector<std::int64_t> shape, std::uint64_t seed) {
  Random random(seed);
  at::Tensor out = at::empty(shape, at::kDouble);
  auto* values = out.data_ptr<double>();
  for (std::int64_t i = 0; i < out.numel(); ++i) values[i] = random.normal();
  return out;
}

struct Layer {
  explicit Layer(const NeuronExpertsConfig& config, c10::ScalarType dtype = at::kDouble)
      : parameters({.tensor = at::TensorOptions().dtype(dtype), .seed = 2}),
        experts(parameters, config, kWidth, "mlp.") {}

  at::Tensor tensor(const std::string& name) const {
    for (const Parameter& parameter : parameters.all()) {
      if (parameter.name() == "mlp." + name) return parameter.value;
    }
    ADD_FAILURE() << "no tensor " << name;
    return {};
  }

  Parameters parameters;
  NeuronExperts experts;
};

Doubles doubles(const at::Tensor& tensor) {
  const at::Tensor whole = tensor.detach().to(at::kDouble).contiguous();
  const auto* begin = whole.const_data_ptr<double>();
  return {begin, begin + whole.numel()};
}

double largest_difference(const at::Tensor& found, const Doubles& expected) {
  const Doubles values = doubles(found);
  EXPECT_EQ(values.size(), expected.size());
  double most = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double off = std::abs(values[i] - expected[i]);
    if (!(off <= most)) most = off;  // NaN stays
  }
  return most;
}

kernels::Routed routed(const NeuronExpertsConfig& config, const Selections& chosen,
                       std::int64_t width) {
  const at::Tensor index = chosen.index.contiguous();
  const auto* begin = index.const_data_ptr<std::int64_t>();
  return {kTokens, config.selections(),    config.experts,
          width,   doubles(chosen.scores), {begin, begin + index.numel()}};
}

/// All that the layers' references need, and its gradients by autograd.
struct Computed {
  explicit Computed(Kind kind) : config(small(kind)), layer(config) {
    x = random_tensor({kTokens, kWidth}, 4).requires_grad_(true);
    const Selections routing = layer.experts.route(x.detach());
    chosen = {routing.scores.detach().requires_grad_(true), routing.index};
    y = layer.experts.experts(x, chosen);
    grad = random_tensor({kTokens, kWidth}, 5);
    y.backward(grad);
  }
  NeuronExpertsConfig config;
  Layer layer;
  at::Tensor x, y, grad;
  Selections chosen;
};

// Sums of at most a few hundred products of numbers of about one: rounding is below 1e-13.
constexpr double kBound = 1e-12;

TEST(NeuronExperts, EthosEqualsBothOrdersOfTheReferenceForwardAndBackward) {
  const Computed c(Kind::ethos);
  kernels::EthosLayer layer;
  layer.routed = routed(c.config, c.chosen, kWidth);
  layer.hidden = c.config.hidden;
  layer.latent = c.config.latent;
  layer.heads = c.config.heads;
  layer.x = doubles(c.x);
  layer.z = doubles(c.layer.tensor("expert_latents.weight"));
  layer.w1 = doubles(c.layer.tensor("w1.weight").t());
  layer.w_u = doubles(c.layer.tensor("w_u.weight").t());
  layer.w_v = doubles(c.layer.tensor("w_v.weight").t());
  EXPECT_TRUE(largest_difference(c.y, kernels::ethos_layer_naive(layer)) <= kBound);
  EXPECT_TRUE(largest_difference(c.y, kernels::ethos_layer_reordered(layer)) <= kBound);
  const auto grads = kernels::ethos_layer_naive_grad(layer, doubles(c.grad));
  auto of = [&](const char* name) { return c.layer.tensor(name).grad(); };
  EXPECT_TRUE(largest_difference(c.x.grad(), grads.x) <= kBound);
  EXPECT_TRUE(largest_difference(c.chosen.scores.grad(), grads.scores) <= kBound);
  EXPECT_TRUE(largest_difference(of("expert_latents.weight"), grads.z) <= kBound);
  EXPECT_TRUE(largest_difference(of("w1.weight").t(), grads.w1) <= kBound);
  EXPECT_TRUE(largest_difference(of("w_u.weight").t(), grads.w_u) <= kBound);
  EXPECT_TRUE(largest_difference(of("w_v.weight").t(), grads.w_v) <= kBound);
}

TEST(NeuronExperts, PeerEqualsTheReferenceForwardAndBackward) {
  const Computed c(Kind::peer);
  const kernels::Routed r = routed(c.config, c.chosen, kWidth);
  const Doubles x = doubles(c.x), down = doubles(c.layer.tensor("expert_down.weight")),
                up = doubles(c.layer.tensor("expert_up.weight"));
  EXPECT_TRUE(largest_difference(c.y, kernels::stored_experts_reference(r, x, down, up).acc) <=
              kBound);
  const auto grads = kernels::stored_experts_grad_reference(r, x, down, up, doubles(c.grad));
  EXPECT_TRUE(largest_difference(c.x.grad(), grads.vectors) <= kBound);
  EXPECT_TRUE(largest_difference(c.chosen.scores.grad(), grads.scores) <= kBound);
  EXPECT_TRUE(largest_difference(c.layer.tensor("expert_down.weight").grad(), grads.down) <=
              kBound);
  EXPECT_TRUE(largest_difference(c.layer.tensor("expert_up.weight").grad(), grads.table) <= kBound);
}

TEST(NeuronExperts, MolaeIsStoredExpertsBetweenTwoSharedMatrices) {
  const Computed c(Kind::molae);
  const at::Tensor read = c.layer.tensor("w_u.weight").detach();
  const at::Tensor written = c.layer.tensor("w_v.weight").detach();
  const auto acc = kernels::stored_experts_reference(
      routed(c.config, c.chosen, c.config.latent), doubles(at::matmul(c.x.detach(), read.t())),
      doubles(c.layer.tensor("expert_down.weight")), doubles(c.layer.tensor("expert_up.weight")));
  const at::Tensor sums = at::tensor(acc.acc, at::kDouble).view({kTokens, c.config.latent});
  EXPECT_TRUE(largest_difference(c.y, doubles(at::matmul(sums, written.t()))) <= kBound);
}

TEST(NeuronExperts, Float32GivesWhatFloat64Gives) {
  for (const Kind kind : {Kind::ethos, Kind::peer, Kind::molae}) {
    const Layer wide(small(kind)), narrow(small(kind), at::kFloat);
    const at::NoGradGuard no_gradient;
    const at::Tensor x = random_tensor({kTokens, kWidth}, 6).to(at::kFloat);
    // One routing for both: what float32 cannot tell apart it may choose otherwise.
    const Selections chosen = narrow.experts.route(x);
    const at::Tensor found = narrow.experts.experts(x, chosen);
    const at::Tensor expected =
        wide.experts.experts(x.to(at::kDouble), {chosen.scores.to(at::kDouble), chosen.index});
    EXPECT_EQ(found.scalar_type(), at::kFloat);
    const double off = (found - expected).abs().max().item<double>();
    EXPECT_TRUE(off <= 64 * 6e-8 * (1 + expected.abs().max().item<double>()))
        << kind_name(kind) << ": " << off;
  }
}

TEST(ChooseExperts, IsTheBestOfAllPairsWithTiesByIndex) {
  // Whole numbers: many sums are equal.
  const std::int64_t rows = 20, side = 9, k = 6;
  Random random(7);
  at::Tensor s1 = at::empty({rows, 1, side}, at::kFloat), s2 = at::empty_like(s1);
  for (at::Tensor* s : {&s1, &s2}) {
    auto* values = s->data_ptr<float>();
    for (std::int64_t i = 0; i < s->numel(); ++i) values[i] = static_cast<float>(random.word() % 4);
  }
  std::vector<float> scores(rows * k);
  std::vector<std::int64_t> expected(rows * k);
  kernels::product_key_topk_reference(s1.const_data_ptr<float>(), s2.const_data_ptr<float>(), rows,
                                      side, k, scores.data(), expected.data());
  const at::Tensor softmax = at::tensor(scores).view({rows, 1, k}).to(at::kDouble).softmax(-1);
  for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
    const Selections found = choose_experts(s1.to(type), s2.to(type), k);
    EXPECT_TRUE(at::equal(found.index.flatten(), at::tensor(expected)));
    EXPECT_TRUE((found.scores - softmax).abs().max().item<double>() <= 1e-6);
  }
}

// By PyTorch's operators in double, by kernels in float.
TEST(BatchNorm, UsesTheRowsInTrainingAndTheirRunningEstimatesElsewhere) {
  for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
    SCOPED_TRACE(c10::toString(type));
    const double off = type == at::kDouble ? 1e-12 : 3e-6;
    const auto within = [off](const at::Tensor& got, const at::Tensor& wanted) {
      return (got.to(at::kDouble) - wanted).abs().max().item<double>() <= off;
    };
    Parameters parameters({.tensor = at::TensorOptions().dtype(type)});
    const BatchNorm norm = batch_norm(parameters, "norm", 12);
    const at::NoGradGuard no_gradient;
    const at::Tensor x = (random_tensor({50, 12}, 8) * 3 + 2).to(type);
    const at::Tensor exact = x.to(at::kDouble);
    const auto side = [](const at::Tensor& all, std::int64_t which) {
      return all.view({50, 3, 2, 2}).select(2, which);
    };
    const Halves y = norm(x, 3, /*training=*/true);
    const at::Tensor centred = exact - exact.mean(0);
    const at::Tensor expected = centred / (exact.var(0, /*unbiased=*/false) + 1e-5).sqrt();
    for (const int which : {0, 1}) EXPECT_TRUE(within(y[which], side(expected, which)));
    EXPECT_TRUE(within(norm.mean, 0.1 * exact.mean(0)));
    const at::Tensor variance = 0.9 + 0.1 * exact.var(0);
    EXPECT_TRUE(within(norm.variance, variance));
    const Halves later = norm(x, 3, false);
    const at::Tensor by_estimates = (exact - 0.1 * exact.mean(0)) / (variance + 1e-5).sqrt();
    for (const int which : {0, 1}) EXPECT_TRUE(within(later[which], side(by_estimates, which)));
    EXPECT_TRUE(within(norm.variance, variance)) << "evaluation moved";
  }
}

// Smaller latents and a larger generator: the same experts, up to rounding, of the same draws.
TEST(NeuronExperts, TheRangeOfLatentsChangesNoExpert) {
  const auto generated = [](double range) {
    NeuronExpertsConfig config;
    config.experts = 25;
    config.heads = 2;
    config.per_head = 3;
    config.query = 6;
    config.latent = 5;
    config.hidden = 32;
    config.latent_range = range;
    Parameters parameters({.tensor = at::TensorOptions().dtype(at::kDouble), .seed = 2});
    const NeuronExperts layer(parameters, config, 16, "mlp.");
    std::map<std::string, at::Tensor> found;
    for (const Parameter& parameter : parameters.all()) {
      found[parameter.name()] = parameter.value.detach();
    }
    const at::Tensor& z = found.at("mlp.expert_latents.weight");
    EXPECT_TRUE(std::abs(z.std().item<double>() / range - 1) < 0.2);
    return at::matmul(z, found.at("mlp.w1.weight").t());
  };
  const at::Tensor usual = generated(1);
  EXPECT_TRUE((generated(0.05) - usual).abs().max().item<double>() <= 1e-12);
  EXPECT_TRUE(std::abs(usual.std().item<double>() - 1) < 0.2);
}

TEST(ExpertUsage, CountsEveryChoiceOfTrainingAndNoOther) {
  const auto model = testing::tiny_model(testing::tiny_config("subspace_decoder", R"({
      "head_dim": 4, "feed_forward": "ethos", "first_k_dense_replace": 1, "num_experts": 25,
      "num_expert_heads": 2, "num_experts_per_head": 3, "query_dim": 6, "expert_latent_dim": 5,
      "expert_hidden_dim": 32})"));
  const at::NoGradGuard no_gradient;
  const Input input = testing::tiny_input(model->config());
  const auto usage = model->expert_usage();
  ASSERT_EQ(usage.size(), 1U);
  EXPECT_EQ(usage[0].layer, 1);
  const at::Tensor& counts = usage[0].usage->counts();
  EXPECT_EQ(counts.sizes().vec(), (std::vector<std::int64_t>{2, 25}));
  model->hidden(input);
  EXPECT_EQ(counts.sum().item<std::int64_t>(), 0);
  model->hidden(input, /*training=*/true);
  // 24 tokens, each head 3 of them.
  EXPECT_TRUE(at::equal(counts.sum(1), at::tensor({72, 72}, at::kLong)));
}

TEST(ExpertChoices, AreThoseOfEveryLayerWithExpertsAndChangeNothing) {
  for (const char* kind : {R"("ethos", "expert_latent_dim": 5, "expert_hidden_dim": 32)",
                           R"("peer", "query_norm": "none")"}) {
    const auto model = testing::tiny_model(testing::tiny_config(
        "subspace_decoder", fmt::format(R"({{"hidden_size": 32, "head_dim": 4, "num_experts": 25,
            "first_k_dense_replace": 1, "num_expert_heads": 2, "num_experts_per_head": 3,
            "query_dim": 6, "feed_forward": {}}})",
                                        kind)));
    const at::NoGradGuard no_gradient;
    const Input input = testing::tiny_input(model->config());
    const at::Tensor before = model->hidden(input);
    const auto found = model->expert_choices(input);
    EXPECT_TRUE(at::equal(model->hidden(input), before));
    ASSERT_EQ(found.size(), 1U);
    EXPECT_EQ(found[0].x.sizes().vec(), (std::vector<std::int64_t>{24, 32}));
    const Selections again = model->blocks()[1].neuron_experts()->route(found[0].x);
    EXPECT_TRUE(at::equal(again.index, found[0].chosen.index));
    EXPECT_TRUE(at::equal(again.scores, found[0].chosen.scores));
    EXPECT_EQ(model->expert_usage()[0].usage->counts().sum().item<std::int64_t>(), 0);
  }
}

TEST(ExpertUsage, EqualsCountingByHand) {
  const ExpertUsage usage(2, 5, at::zeros({1}));
  const at::Tensor index = at::tensor({0, 4, 4, 1, 2, 4, 3, 3}, at::kLong).view({2, 2, 2});
  usage.count(index);
  usage.count(index);
  EXPECT_TRUE(at::equal(usage.counts(),
                        at::tensor({2, 0, 2, 0, 4, 0, 2, 0, 4, 2}, at::kLong).view({2, 5})));
}

}  // namespace
}  // namespace subspace::nn
