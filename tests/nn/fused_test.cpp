// Models on the kernels' CPU twins give what they give on PyTorch's operators.

#include "nn/fused.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "nn/fused_attention.h"
#include "nn/tiny_models.h"

namespace subspace::nn {
namespace {

constexpr const char* kLatentFields =
    R"("q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "v_head_dim": 16,
       "hidden_size": 32, "intermediate_size": 24)";

std::vector<testing::Variant> sizes_that_fit() {
  const auto with = [](const std::string& more) {
    return std::string("{") + kLatentFields + ", " + more + "}";
  };
  return {
      {"mha", "subspace_encoder",
       R"({"hidden_size": 32, "intermediate_size": 24, "head_dim": 8, "mlp_bias": true})"},
      {"llama", "llama", R"({"hidden_size": 32, "head_dim": 16, "attention_bias": true})"},
      {"own_keys", "subspace_encoder",
       with(R"("qk_nope_head_dim": 8, "qk_rope_keys": "per_head", "o_lora_rank": 16,
               "mlp_bias": true, "tie_word_embeddings": true)")},
      {"shared_key", "subspace_decoder",
       with(R"("qk_nope_head_dim": 8, "o_lora_rank": 16, "o_latent_norm": "rms")")},
      {"narrow_values", "subspace_decoder", with(R"("qk_nope_head_dim": 16, "o_lora_rank": 16)")},
      {"ethos", "subspace_decoder",
       with(R"("qk_nope_head_dim": 8, "feed_forward": "ethos", "first_k_dense_replace": 1,
               "num_experts": 25, "num_expert_heads": 2, "num_experts_per_head": 3,
               "query_dim": 8, "expert_latent_dim": 8, "expert_hidden_dim": 32)")},
      {"halves", "subspace_decoder",
       with(R"("qk_nope_head_dim": 8, "rope_interleave": false, "o_lora_rank": 16)")},
  };
}

/// Restores the usual whatever happens.
struct Fusing {
  explicit Fusing(Fuse where) { fuse(where); }
  ~Fusing() { fuse(Fuse::on_gpu); }
};

struct Found {
  double loss = 0;
  std::vector<at::Tensor> gradients;
};

/// Of the trainer's loss on some rows; gradients are added to `before` where that is not zero.
Found step(const testing::Variant& variant, Fuse where, double before, bool all_rows) {
  const Fusing fusing(where);
  Model::Options options;
  options.seed = 3;
  const Model model(read_model_config(variant.config(), variant.name), options);
  if (before != 0) {
    for (const Parameter& parameter : model.parameters().all()) {
      at::Tensor value = parameter.value;
      value.mutable_grad() = at::full_like(value, before);
    }
  }
  Input input;
  input.tokens = at::arange(27).mul(5).remainder(21).view({3, 9});
  const at::Tensor rows = all_rows ? at::Tensor() : at::tensor({2, 3, 11, 17, 26, 0}, at::kLong);
  const at::Tensor targets = all_rows ? at::arange(27).mul(11).remainder(21)
                                      : at::tensor({4, 0, 20, 7, 9, -100}, at::kLong);
  const at::Tensor loss = model.scaled_loss(model.hidden_rows(input, rows, true), targets,
                                            at::full({}, 0.25, at::kFloat));
  loss.backward();
  Found found;
  found.loss = loss.item<double>();
  for (const Parameter& parameter : model.parameters().all()) {
    found.gradients.push_back(parameter.value.grad());
  }
  return found;
}

double largest(const std::vector<at::Tensor>& gradients) {
  double most = 0;
  for (const at::Tensor& gradient : gradients) {
    if (gradient.defined()) most = std::max(most, gradient.norm().item<double>());
  }
  return most;
}

class Fused : public ::testing::TestWithParam<testing::Variant> {};

TEST_P(Fused, EqualsTheOperators) {
  for (const bool all_rows : {false, true}) {
    const Found plain = step(GetParam(), Fuse::never, 0, all_rows);
    for (const double before : {0.0, 1.0}) {
      const Found fused = step(GetParam(), Fuse::always, before, all_rows);
      EXPECT_FALSE(!(std::abs(fused.loss - plain.loss) <= 2e-6 * plain.loss));
      ASSERT_EQ(fused.gradients.size(), plain.gradients.size());
      // A bias in front of a batch norm has no gradient but what rounding leaves of others'.
      const double rounding = 1e-7 * largest(plain.gradients);
      for (std::size_t i = 0; i < plain.gradients.size(); ++i) {
        if (!plain.gradients[i].defined()) continue;  // running estimates
        const at::Tensor difference = fused.gradients[i] - before - plain.gradients[i];
        const double size = plain.gradients[i].norm().item<double>() + before;
        EXPECT_FALSE(!(difference.norm().item<double>() <= 1e-5 * size + rounding))
            << i << " of " << size;
      }
    }
  }
}

// What is compared above is the kernels, not the operators twice.
TEST_P(Fused, AttendsByKernels) {
  const Fusing fusing(Fuse::always);
  const ModelConfig config = read_model_config(GetParam().config(), GetParam().name);
  const at::Tensor x = at::zeros({1, 9, config.width});
  PassContext pass;
  pass.rotary = RotaryTable(config.attention.rotary, 9, x.options()).at_positions(9, at::Tensor());
  EXPECT_TRUE(attention_fits(config.attention, pass, x));
}

INSTANTIATE_TEST_SUITE_P(Variants, Fused, ::testing::ValuesIn(sizes_that_fit()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace subspace::nn
