#include "nn/model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <fstream>
#include <random>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/random.h"
#include "nn/tiny_models.h"

namespace subspace::nn {
namespace {
namespace fs = std::filesystem;

struct Folder {
  Folder() {
    std::random_device seed;
    path = fs::temp_directory_path() / fmt::format("subspace_nn_{}", seed());
  }
  ~Folder() { remove_tree(path); }
  fs::path path;
};

class EveryModel : public ::testing::TestWithParam<testing::Variant> {};

TEST_P(EveryModel, ComesBackFromItsCheckpointBitForBit) {
  const auto model = testing::tiny_model(GetParam().config());
  const Folder folder;
  save_model(*model, folder.path);
  Model::Options options;
  options.dtype = at::kDouble;
  const auto loaded = load_model(folder.path, options, 1);
  const Input input = testing::tiny_input(model->config());
  const at::NoGradGuard no_gradient;
  EXPECT_TRUE(
      at::equal(loaded->logits(loaded->hidden(input)), model->logits(model->hidden(input))));
}

TEST_P(EveryModel, IsMadeOfTheSameNumbersAgain) {
  const ModelConfig config = read_model_config(GetParam().config(), "config.json");
  const Model one(config, {.seed = 4}), same(config, {.seed = 4}), other(config, {.seed = 5});
  bool differs = false;
  for (std::size_t i = 0; i < one.parameters().all().size(); ++i) {
    const at::Tensor& value = one.parameters().all()[i].value;
    EXPECT_TRUE(at::equal(value, same.parameters().all()[i].value));
    differs |= !at::equal(value, other.parameters().all()[i].value);
  }
  EXPECT_TRUE(differs);
}

TEST_P(EveryModel, LeavesBfloat16Finite) {
  const ModelConfig config = read_model_config(GetParam().config(), "config.json");
  const Model model(config, {.dtype = at::kBFloat16});
  Input input = testing::tiny_input(config);
  if (config.image) input.pixels = input.pixels.to(at::kBFloat16);
  const at::Tensor loss = testing::tiny_loss(model, input);
  EXPECT_EQ(loss.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::isfinite(loss).all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(Variants, EveryModel, ::testing::ValuesIn(testing::variants()),
                         [](const auto& info) { return info.param.name; });

TEST(Model, RefusesSequencesLongerThanItsPositions) {
  const auto model = testing::tiny_model(testing::tiny_config("llama", R"({"head_dim": 4})"));
  Input input;
  input.tokens = at::zeros({1, 10}, at::kLong);
  try {
    model->hidden(input);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("10 tokens"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("9"), std::string::npos);
  }
}

TEST(Model, RefusesACheckpointOfOtherShapesByName) {
  const Folder folder;
  save_model(*testing::tiny_model(testing::tiny_config("llama", R"({"head_dim": 4})")),
             folder.path);
  Json config = read_json_file(folder.path / "config.json");
  config["intermediate_size"] = 11;
  std::ofstream(folder.path / "config.json") << config.dump();
  try {
    load_model(folder.path, {}, 1);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidShape);
    const std::string text = error.what();
    EXPECT_NE(text.find("mlp.gate_proj.weight"), std::string::npos) << text;
    EXPECT_NE(text.find("[10, 16]"), std::string::npos) << text;
    EXPECT_NE(text.find("[11, 16]"), std::string::npos) << text;
  }
}

TEST(Model, CausalModelsDoNotSeeAhead) {
  for (const testing::Variant& variant : testing::variants()) {
    const auto model = testing::tiny_model(variant.config());
    if (model->config().task == Task::image_classification) continue;
    const at::NoGradGuard no_gradient;
    Input input = testing::tiny_input(model->config());
    const at::Tensor before = model->hidden(input).narrow(1, 0, 7).clone();
    input.tokens.select(1, 7).add_(1).remainder_(21);
    const at::Tensor after = model->hidden(input).narrow(1, 0, 7);
    EXPECT_EQ(at::equal(before, after), model->config().attention.causal) << variant.name;
  }
}

TEST(Model, AClassifierAnswersTheSameWhateverThePadding) {
  for (const testing::Variant& variant : testing::variants()) {
    const auto model = testing::tiny_model(variant.config());
    if (model->config().task != Task::sequence_classification) continue;
    const at::NoGradGuard no_gradient;
    const at::Tensor tokens = testing::tiny_input(model->config()).tokens.narrow(1, 0, 5);
    auto answer = [&](const at::Tensor& padding) {
      Input input;
      input.tokens = at::cat({tokens, padding}, 1);
      const std::int64_t width = input.tokens.size(1);
      input.segments = -(at::arange(width, at::kInt) >= 5).to(at::kInt).expand({3, width});
      return model->logits(model->hidden_rows(input, at::arange(3, at::kLong) * width));
    };
    Input bare;
    bare.tokens = tokens;
    const at::Tensor alone = model->logits(model->hidden(bare));
    EXPECT_EQ(alone.sizes(), at::IntArrayRef({3, 5})) << variant.name;
    for (const std::int64_t id : {0, 7}) {
      const at::Tensor padded = answer(at::full({3, 4}, id, at::kLong));
      const double error = (padded - alone).abs().max().item<double>();
      EXPECT_TRUE(error <= 1e-13 * alone.abs().max().item<double>())
          << variant.name << ": " << error;
    }
  }
}

TEST(Parameters, FirstValuesDependOnSeedNameAndPlaceAlone) {
  // More than are drawn in one go, and no whole number of a thread's runs.
  constexpr std::int64_t kRows = 4243, kColumns = 1009;
  const int threads = at::get_num_threads();
  at::Tensor drawn[2];
  for (const int count : {1, 3}) {
    at::set_num_threads(count);
    Parameters parameters({.tensor = at::TensorOptions().dtype(at::kFloat), .seed = 6});
    parameters.weights({{"a.weight", {3, kColumns}}, {"b.weight", {kRows, kColumns}}});
    drawn[count / 3] = parameters.all().front().value.detach().narrow(0, 3, kRows).flatten();
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(drawn[0], drawn[1]));
  // FNV-1a of the name is the stream.
  std::uint64_t stream = 14695981039346656037U;
  for (const char c : std::string("b.weight")) {
    stream = (stream ^ static_cast<unsigned char>(c)) * 1099511628211U;
  }
  Random random(6, stream);
  const auto* value = drawn[0].const_data_ptr<float>();
  for (std::int64_t i = 0; i < kRows * kColumns; ++i) {
    ASSERT_EQ(value[i], static_cast<float>(0.02 * random.normal())) << i;
  }
}

MoeConfig experts() {
  MoeConfig config;
  config.experts = 7;
  config.active = 3;
  config.width = 4;
  config.bias_speed = 0.25;
  return config;
}

TEST(MixtureOfExperts, BothWaysOfComputingAgree) {
  Parameters parameters({.tensor = at::TensorOptions().dtype(at::kDouble), .range = 0.5});
  const MixtureOfExperts moe(parameters, experts(), 6, "mlp.");
  const at::Tensor x = at::randn({9, 6}, at::kDouble);
  const at::Tensor weights = at::rand({9, 3}, at::kDouble);
  // Expert 6 is chosen by nobody.
  const at::Tensor chosen = std::get<1>(at::rand({9, 6}).topk(3, -1));
  const at::Tensor all = moe.all_experts(x, chosen, weights);
  const double error = (moe.chosen_experts(x, chosen, weights) - all).abs().max().item<double>();
  EXPECT_TRUE(error <= 1e-14 * all.abs().max().item<double>()) << error;
}

/// Values and gradients of x, the weights and every parameter, by either way.
std::vector<at::Tensor> mixture_and_gradients(const Parameters& parameters, const at::Tensor& y,
                                              const std::vector<at::Tensor>& inputs) {
  std::vector<at::Tensor> found = {y.detach()}, wanted = inputs;
  for (const Parameter& parameter : parameters.all()) {
    if (parameter.parts.front().name.find("experts.") != std::string::npos) {
      wanted.push_back(parameter.value);
    }
  }
  const at::Tensor grad = at::linspace(-1, 1, y.numel(), y.options()).view_as(y);
  const auto grads = torch::autograd::grad({y}, wanted, {grad}, true, false, /*allow_unused=*/true);
  for (const at::Tensor& g : grads) {
    if (g.defined()) found.push_back(g);
  }
  return found;
}

void grouped_products_agree(at::TensorOptions options, double tolerance) {
  MoeConfig config = experts();
  config.width = 8;
  Parameters parameters({.tensor = options, .range = 0.5});
  const MixtureOfExperts moe(parameters, config, 16, "mlp.");
  const at::Tensor x = at::randn({9, 16}, options).requires_grad_();
  const at::Tensor weights = at::rand({9, 3}, options).requires_grad_();
  // Expert 6 is chosen by nobody.
  const at::Tensor chosen = std::get<1>(at::rand({9, 6}, options.dtype(at::kFloat)).topk(3, -1));
  const auto grouped =
      mixture_and_gradients(parameters, moe.grouped_experts(x, chosen, weights), {x, weights});
  const auto all =
      mixture_and_gradients(parameters, moe.all_experts(x, chosen, weights), {x, weights});
  ASSERT_EQ(grouped.size(), all.size());
  ASSERT_GE(grouped.size(), 5U) << "y and gradients of x, weights, both matrices";
  for (std::size_t i = 0; i < all.size(); ++i) {
    const double size = all[i].abs().max().item<double>();
    const double error = (grouped[i] - all[i]).abs().max().item<double>();
    EXPECT_GT(size, 0) << i;
    EXPECT_TRUE(error <= tolerance * size) << i << ": " << error << " of " << size;
  }
}

// Sums of 16 and 8 terms, twice rounded: a few units in the last place of the largest.
TEST(MixtureOfExperts, GroupedProductsAgree) { grouped_products_agree(at::kFloat, 2e-6); }

TEST(MixtureOfExperts, GroupedProductsAgreeOnTheGpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "needs a GPU";
  grouped_products_agree(at::TensorOptions(at::kBFloat16).device(at::kCUDA), 3e-2);
}

TEST(MixtureOfExperts, TheCorrectionBiasMovesTowardsEqualLoad) {
  Parameters parameters({.tensor = at::TensorOptions().dtype(at::kDouble), .range = 0.5});
  MixtureOfExperts moe(parameters, experts(), 6, "mlp.");
  at::Tensor bias;
  for (const Parameter& parameter : parameters.all()) {
    if (!parameter.trained) bias = parameter.value;
  }
  ASSERT_TRUE(bias.defined());
  bias[2] = 100;  // chosen by every token
  PassContext pass;
  pass.training = true;
  const at::NoGradGuard no_gradient;
  moe(at::randn({1, 50, 6}, at::kDouble), pass);
  const at::Tensor before = bias.clone();
  moe.after_step();
  const at::Tensor change = bias - before;
  EXPECT_EQ(change[2].item<double>(), -0.25);
  EXPECT_GT(change.max().item<double>(), 0);
  const at::Tensor kept = bias.clone();
  pass.training = false;
  moe(at::randn({1, 50, 6}, at::kDouble), pass);
  moe.after_step();
  EXPECT_TRUE(at::equal(bias, kept)) << "evaluation is no load";
}

}  // namespace
}  // namespace subspace::nn
