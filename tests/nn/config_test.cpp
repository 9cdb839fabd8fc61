// Every refusal of a configuration: by the name of the field, with what would be right.

#include "nn/config.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "nn/tiny_models.h"

namespace subspace::nn {
namespace {

struct Bad {
  const char* name;
  const char* model_type;
  const char* more;
  std::vector<std::string> words;
};

class BadConfig : public ::testing::TestWithParam<Bad> {};

TEST_P(BadConfig, IsRefusedByName) {
  const Json config = testing::tiny_config(GetParam().model_type, GetParam().more);
  try {
    read_model_config(config, "config.json");
    FAIL() << "accepted";
  } catch (const Error& error) {
    const std::string text = error.what();
    for (const std::string& word : GetParam().words) {
      EXPECT_NE(text.find(word), std::string::npos) << "no '" << word << "' in: " << text;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Rules, BadConfig,
    ::testing::Values(
        Bad{"misspelt",
            "llama",
            R"({"hiden_size": 12})",
            {"config.json", "'hiden_size'", "did you mean 'hidden_size'?"}},
        Bad{"of_another_type", "bert", R"({"kv_lora_rank": 4})", {"'kv_lora_rank'", "'bert'"}},
        Bad{"unknown_type", "novel", "{}", {"'novel'", "deepseek_v3", "subspace_encoder"}},
        Bad{"missing", "llama", R"({"vocab_size": null})", {"vocab_size"}},
        Bad{"not_a_number", "llama", R"({"hidden_size": "wide"})", {"hidden_size", "wide"}},
        Bad{"heads_and_width",
            "llama",
            R"({"num_attention_heads": 5})",
            {"hidden_size", "16", "num_attention_heads 5", "head_dim"}},
        Bad{"heads_and_groups",
            "llama",
            R"({"num_key_value_heads": 3})",
            {"num_key_value_heads", "num_attention_heads 4"}},
        Bad{"experts_no_square",
            "subspace_decoder",
            R"({"feed_forward": "peer", "num_experts": 26})",
            {"'num_experts'", "26", "square", "5^2"}},
        Bad{"more_choices_than_keys",
            "subspace_decoder",
            R"({"feed_forward": "peer", "num_experts": 25, "num_expert_heads": 2,
                "num_experts_per_head": 6})",
            {"'num_experts_per_head'", "6", "5", "25"}},
        Bad{"odd_query",
            "subspace_decoder",
            R"({"feed_forward": "peer", "num_experts": 25, "num_expert_heads": 2,
                "num_experts_per_head": 5, "query_dim": 7})",
            {"'query_dim'", "even"}},
        Bad{"generated_width",
            "subspace_decoder",
            R"({"feed_forward": "ethos", "num_experts": 25, "num_expert_heads": 2,
                "num_experts_per_head": 5, "query_dim": 6, "expert_latent_dim": 4,
                "expert_hidden_dim": 40})",
            {"'expert_hidden_dim'", "40", "32", "1024"}},
        Bad{"latents_without_spread",
            "subspace_decoder",
            R"({"feed_forward": "ethos", "num_experts": 25, "num_expert_heads": 2,
                "num_experts_per_head": 5, "query_dim": 6, "expert_latent_dim": 4,
                "expert_hidden_dim": 32, "expert_latent_range": 0})",
            {"'expert_latent_range'", "more than 0"}},
        Bad{"spread_of_no_latents",
            "subspace_decoder",
            R"({"hidden_size": 32, "feed_forward": "peer", "num_experts": 25,
                "num_expert_heads": 2, "num_experts_per_head": 5, "query_dim": 6,
                "expert_latent_range": 0.5})",
            {"'expert_latent_range'", "no latents"}},
        Bad{"stored_width",
            "subspace_decoder",
            R"({"feed_forward": "peer", "num_experts": 25, "num_expert_heads": 2,
                "num_experts_per_head": 5, "query_dim": 6})",
            {"'hidden_size'", "16", "multiple of 32"}},
        Bad{"stored_with_latent",
            "subspace_decoder",
            R"({"feed_forward": "peer", "num_experts": 25, "num_expert_heads": 2,
                "num_experts_per_head": 5, "query_dim": 6, "expert_latent_dim": 4})",
            {"'expert_latent_dim'", "as wide as the model"}},
        Bad{"no_layer_with_experts",
            "subspace_decoder",
            R"({"feed_forward": "molae", "num_experts": 25, "num_expert_heads": 2,
                "num_experts_per_head": 5, "query_dim": 6, "expert_latent_dim": 32,
                "first_k_dense_replace": 2})",
            {"'first_k_dense_replace'", "no layer of 2"}},
        Bad{"two_kinds",
            "subspace_decoder",
            R"({"feed_forward": "ethos", "n_routed_experts": 4})",
            {"'feed_forward'", "ethos", "n_routed_experts", "moe"}},
        Bad{"experts_of_transformers",
            "llama",
            R"({"feed_forward": "ethos"})",
            {"'feed_forward'", "'llama'"}},
        Bad{"odd_rotation",
            "subspace_encoder",
            R"({"head_dim": 6, "qk_rope_head_dim": 3})",
            {"qk_rope_head_dim", "even"}},
        Bad{"rotation_wider_than_head",
            "subspace_encoder",
            R"({"qk_rope_head_dim": 8})",
            {"qk_rope_head_dim", "4 dimensions"}},
        Bad{"rotated_and_learned",
            "subspace_encoder",
            R"({"position_embedding_type": "absolute", "kv_lora_rank": 4, "v_head_dim": 3,
                "qk_rope_head_dim": 2})",
            {"qk_rope_head_dim", "absolute"}},
        Bad{"mla_without_latent",
            "subspace_encoder",
            R"({"attention": "mla"})",
            {"'attention'", "mla", "kv_lora_rank", "mha"}},
        Bad{"mha_with_latent",
            "subspace_encoder",
            R"({"attention": "mha", "kv_lora_rank": 4, "qk_nope_head_dim": 2, "v_head_dim": 3})",
            {"'attention'", "kv_lora_rank", "mla"}},
        Bad{"mqa_with_groups",
            "subspace_encoder",
            R"({"attention": "mqa", "num_key_value_heads": 2})",
            {"'attention'", "gqa"}},
        Bad{"query_without_dimensions",
            "subspace_decoder",
            R"({"kv_lora_rank": 4, "v_head_dim": 3})",
            {"qk_nope_head_dim"}},
        Bad{"shared_without_rank",
            "subspace_encoder",
            R"({"attention_output": "shared"})",
            {"attention_output", "o_lora_rank"}},
        Bad{"dense_with_rank",
            "subspace_encoder",
            R"({"attention_output": "dense", "o_lora_rank": 4})",
            {"o_lora_rank", "dense"}},
        Bad{"groups_without_rank", "subspace_encoder", R"({"o_groups": 2})", {"o_groups"}},
        Bad{"norm_without_rank",
            "subspace_encoder",
            R"({"o_latent_norm": "rms"})",
            {"o_latent_norm"}},
        Bad{"groups_and_heads",
            "subspace_encoder",
            R"({"o_lora_rank": 4, "o_groups": 3})",
            {"o_groups", "4 heads"}},
        Bad{"unknown_norm",
            "subspace_encoder",
            R"({"o_lora_rank": 4, "o_latent_norm": "layer"})",
            {"o_latent_norm", "rms_per_head"}},
        Bad{"activation", "llama", R"({"hidden_act": "relu"})", {"hidden_act", "relu", "silu"}},
        Bad{"experts_missing_field",
            "subspace_decoder",
            R"({"n_routed_experts": 4})",
            {"num_experts_per_tok"}},
        Bad{"more_active_than_experts",
            "subspace_decoder",
            R"({"n_routed_experts": 4, "num_experts_per_tok": 5, "moe_intermediate_size": 3})",
            {"num_experts_per_tok", "4 experts"}},
        Bad{"expert_groups",
            "subspace_decoder",
            R"({"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 3,
                "n_group": 3})",
            {"n_group", "n_routed_experts 4"}},
        Bad{"scoring_of_deepseek",
            "deepseek_v3",
            R"({"kv_lora_rank": 4, "qk_nope_head_dim": 2, "v_head_dim": 3,
                "scoring_func": "softmax"})",
            {"scoring_func", "softmax", "subspace_decoder"}},
        Bad{"decoder_bert", "bert", R"({"is_decoder": true})", {"is_decoder"}},
        Bad{"patches", "vit", R"({"patch_size": 4})", {"image_size", "patch_size 4"}},
        Bad{"negative", "llama", R"({"rms_norm_eps": -1.0})", {"rms_norm_eps", "-1"}}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Config, WhatTransformersWritesBesidesIsAccepted) {
  const Json config = testing::tiny_config(
      "llama", R"({"architectures": ["LlamaForCausalLM"], "transformers_version": "5.17.0",
                   "use_cache": true, "bos_token_id": 1, "attention_dropout": 0.0,
                   "pretraining_tp": 1, "head_dim": 4})");
  EXPECT_EQ(read_model_config(config, "config.json").dropout, 0);
}

TEST(Config, DropoutIsKeptForTrainingToRefuse) {
  const Json config = testing::tiny_config("bert", R"({"hidden_dropout_prob": 0.1})");
  EXPECT_EQ(read_model_config(config, "config.json").dropout, 0.1);
}

}  // namespace
}  // namespace subspace::nn
