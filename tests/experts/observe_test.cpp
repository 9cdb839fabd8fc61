#include "experts/observe.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "experts/vectors.h"

namespace subspace::experts {
namespace {

nn::ModelConfig tiny_ethos() {
  const Json json = Json::parse(R"({"model_type": "subspace_decoder", "vocab_size": 21,
      "hidden_size": 16, "intermediate_size": 10, "num_hidden_layers": 3, "num_attention_heads": 4,
      "max_position_embeddings": 6, "feed_forward": "ethos", "first_k_dense_replace": 1,
      "num_experts": 25, "num_expert_heads": 2, "num_experts_per_head": 3, "query_dim": 6,
      "expert_latent_dim": 5, "expert_hidden_dim": 32})");
  return nn::read_model_config(json, "tiny");
}

/// Passes of two rows of six tokens, of which the last two of every row are padding.
class Rows : public train::Batches {
 public:
  explicit Rows(std::int64_t held_out) : held_out_(held_out) {}
  train::Batch training(std::int64_t step, std::int64_t) const override { return pass(100 + step); }
  std::optional<train::Batch> held_out(std::int64_t n) const override {
    if (n >= held_out_) return std::nullopt;
    return pass(n);
  }
  std::string id() const override { return "rows"; }

 private:
  static train::Batch pass(std::int64_t n) {
    train::Batch batch;
    batch.input.tokens = ((at::arange(12, at::kInt) + n) % 21).view({2, 6});
    batch.input.segments = at::tensor({0, 0, 0, 0, -1, -1}, at::kInt).repeat({2, 1});
    return batch;
  }
  std::int64_t held_out_;
};

TEST(Observe, ChoicesAreThoseOfEveryTokenThatIsNoPadding) {
  const nn::Model model(tiny_ethos(), {.seed = 5});
  const Rows rows(3);
  const Observation found = observe(model, rows, 9);
  EXPECT_TRUE(found.held_out);
  EXPECT_EQ(found.rows, 4) << "whole passes until there are enough";
  ASSERT_EQ(found.layers.size(), 2U);
  const at::Tensor places = at::tensor({0, 1, 2, 3, 6, 7, 8, 9}, at::kLong);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const Observed& one = found.layers[layer];
    EXPECT_EQ(one.layer, static_cast<std::int64_t>(layer) + 1);
    EXPECT_EQ(one.x.sizes().vec(), (std::vector<std::int64_t>{16, 16}));
    std::vector<at::Tensor> wanted, tokens;
    for (std::int64_t n = 0; n < 2; ++n) {
      const train::Batch batch = *rows.held_out(n);
      const auto choices = model.expert_choices(batch.input);
      wanted.push_back(choices[layer].chosen.index.index_select(0, places));
      tokens.push_back(batch.input.tokens.flatten().index_select(0, places));
    }
    const at::Tensor index = at::cat(wanted);
    EXPECT_TRUE(at::equal(one.index.to(at::kLong), index));
    EXPECT_TRUE(at::equal(found.tokens, at::cat(tokens).to(at::kLong)));
    EXPECT_EQ(one.counts.sizes().vec(), (std::vector<std::int64_t>{2, 25}));
    for (std::int64_t head = 0; head < 2; ++head) {
      for (std::int64_t expert = 0; expert < 25; ++expert) {
        EXPECT_EQ(one.counts[head][expert].item<std::int64_t>(),
                  (index.select(1, head) == expert).sum().item<std::int64_t>());
      }
    }
  }
}

TEST(Observe, ReadsTrainingRowsWhereNoneAreHeldOutAndStopsWhereTheyEnd) {
  const nn::Model model(tiny_ethos(), {.seed = 5});
  const Observation trained = observe(model, Rows(0), 20);
  EXPECT_FALSE(trained.held_out);
  EXPECT_EQ(trained.tokens[0].item<std::int64_t>(), 100 % 21);
  EXPECT_EQ(observe(model, Rows(3), 1000).tokens.size(0), 24);
}

TEST(ExpertTensors, AreTheModelsOwnInRowVectors) {
  const nn::Model model(tiny_ethos(), {.seed = 5});
  const at::NoGradGuard no_gradient;
  const ExpertTensors tensors = expert_tensors(model, 2);
  const at::Tensor x = at::randn({7, 16});
  const nn::NeuronExperts& layer = *model.blocks()[2].neuron_experts();
  const nn::Selections chosen = layer.route(x);
  // The layer from these tensors, by its equation.
  const at::Tensor h =
      tensors.read(tensors.z).index_select(0, chosen.index.flatten()).view({7, 6, 32});
  const at::Tensor xp = at::matmul(x.to(at::kDouble), tensors.w_u);
  const at::Tensor weights = at::gelu(at::matmul(h, xp.unsqueeze(-1)).squeeze(-1)) *
                             chosen.scores.flatten(1).to(at::kDouble);
  const at::Tensor y = at::matmul(at::matmul(weights.unsqueeze(1), h).squeeze(1), tensors.w_v) / 2;
  const at::Tensor got = layer.experts(x, chosen).to(at::kDouble);
  const double error = (got - y).abs().max().item<double>();
  EXPECT_FALSE(!(error <= 1e-5 * y.abs().max().item<double>())) << error;
  EXPECT_EQ(tensors.keys[1].sizes().vec(), (std::vector<std::int64_t>{5, 3}));
  EXPECT_ANY_THROW(expert_tensors(model, 0)) << "a dense layer";
}

}  // namespace
}  // namespace subspace::experts
