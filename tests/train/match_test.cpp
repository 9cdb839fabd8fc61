// Counts of parameters and operations against counts by hand, and models made equal in them.

#include "train/match.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "base/error.h"
#include "train/usage.h"

namespace subspace::train {
namespace {

Settings tiny_settings() {
  Settings s;
  s.batch_size = 4;
  return s;
}

/// d 32, 3 layers of which the first is dense, 16 positions, 4 heads of 8 by MHA, 64 words.
Json model(const std::string& more) {
  Json json = Json::parse(R"({"model_type": "subspace_decoder", "hidden_size": 32,
      "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
      "vocab_size": 64, "max_position_embeddings": 16, "first_k_dense_replace": 1})");
  json.update(Json::parse(more));
  return json;
}

constexpr const char* kRouter =
    R"("num_experts": 16, "num_expert_heads": 2, "num_experts_per_head": 3, "query_dim": 10)";

Json of_kind(const std::string& kind, const std::string& more) {
  return model("{" + std::string(kRouter) + ", \"feed_forward\": \"" + kind + "\"" + more + "}");
}

// By hand. Every model: embedding 64 32 (tied: met once, by the head), last norm 32; a layer:
// attention 4 32 32, two norms; scores and values 4 (8 + 8) 16 / 2 a layer; dense part 3 32 48.
constexpr double kParametersOfAll = 64 * 32 + 32 + 3 * (4 * 32 * 32 + 2 * 32) + 3 * 32 * 48;
constexpr double kMetOfAll = 64 * 32 + 3 * (4 * 32 * 32 + 4 * 16 * 8) + 3 * 32 * 48;
// Router: queries 32 x 20 with bias and batch norm, keys 2 x 4 x 5, each met by both heads.
constexpr double kRouterParameters = 32 * 20 + 3 * 20 + 40;
constexpr double kRouterMet = 32 * 20 + 2 * 40;

void expect_counts(const Json& json, double parameters, double met) {
  const ModelCounts found = counts_of(nn::read_model_config(json, "config.json"), tiny_settings());
  EXPECT_EQ(static_cast<double>(found.parameters), parameters);
  EXPECT_TRUE(std::abs(found.flops_per_token / (6 * met) - 1) <= 1e-12)
      << found.flops_per_token << " and " << 6 * met;
}

TEST(Counts, OfEthosEqualThoseByHand) {
  // 6 selections of 64 tokens are more than 16 / 4: the table of 16 experts serves 64 tokens.
  expect_counts(of_kind("ethos", R"(, "expert_latent_dim": 6, "expert_hidden_dim": 64)"),
                kParametersOfAll + 2 * (kRouterParameters + 16 * 6 + 6 * 64 + 2 * 32 * 64),
                kMetOfAll + 2 * (kRouterMet + 2 * 32 * 64 + 2 * 6 * 64 + 16.0 * 6 * 64 / 64));
}

TEST(Counts, OfPeerEqualThoseByHand) {
  expect_counts(of_kind("peer", ""), kParametersOfAll + 2 * (kRouterParameters + 2 * 16 * 32),
                kMetOfAll + 2 * (kRouterMet + 2 * 6 * 32));
}

TEST(Counts, OfMolaeEqualThoseByHand) {
  expect_counts(of_kind("molae", R"(, "expert_latent_dim": 64)"),
                kParametersOfAll + 2 * (kRouterParameters + 2 * 16 * 64 + 2 * 32 * 64),
                kMetOfAll + 2 * (kRouterMet + 2 * 32 * 64 + 2 * 6 * 64));
}

TEST(Counts, OfAMixtureOfExpertsEqualThoseByHand) {
  expect_counts(model(R"({"n_routed_experts": 5, "num_experts_per_tok": 2,
                          "moe_intermediate_size": 8})"),
                kParametersOfAll + 2 * (5 * 32 + 5 * 3 * 32 * 8),
                kMetOfAll + 2 * (5 * 32 + 2 * 3 * 32 * 8));
}

TEST(Counts, OfADenseModelEqualThoseByHand) {
  Json json = model("{}");
  json.erase("first_k_dense_replace");
  expect_counts(json, kParametersOfAll + 2 * 3 * 32 * 48, kMetOfAll + 2 * 3 * 32 * 48);
}

Json shipped(const std::string& name) {
  std::ifstream stream(std::string(SUBSPACE_CONFIGS "/") + name + ".json");
  return Json::parse(stream);
}

TEST(Counts, ThePapersModelHasItsPublishedSize) {
  Json json = shipped("ethos-paper");
  const Settings s = read_settings(json.at("train"), "ethos-paper.json");
  json.erase("train");
  const ModelCounts found = counts_of(nn::read_model_config(json, "ethos-paper.json"), s);
  EXPECT_EQ(found.parameters, 743979008);
  EXPECT_NE(counts_text(found).find("(744 M)"), std::string::npos) << counts_text(found);
}

class Rivals : public ::testing::TestWithParam<const char*> {};

/// The shipped rivals are what match_model makes of the small ETHOS, and as near as promised.
TEST_P(Rivals, AreTheSmallEthosAtEqualCompute) {
  const std::string kind = GetParam();
  Json reference = shipped("ethos-small"), rival = shipped(kind + "-small");
  EXPECT_EQ(reference.at("train"), rival.at("train"));
  const Settings s = read_settings(reference.at("train"), "ethos-small.json");
  reference.erase("train");
  rival.erase("train");
  const Matched found = match_model(reference, s, kind, MatchBy::flops, "ethos-small.json");
  // In any order of fields.
  using Unordered = nlohmann::json;
  EXPECT_EQ(Unordered::parse(found.model.dump()), Unordered::parse(rival.dump()))
      << match_text(found);
  EXPECT_TRUE(std::abs(found.found.flops_per_token / found.reference.flops_per_token - 1) <= 0.005)
      << match_text(found);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Rivals, ::testing::Values("peer", "molae", "moe", "dense"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Match, ByParametersComesNearerThanBothNeighbours) {
  const Json reference = of_kind("ethos", R"(, "expert_latent_dim": 6, "expert_hidden_dim": 64)");
  for (const char* kind : {"peer", "molae", "moe", "dense"}) {
    const Matched found =
        match_model(reference, tiny_settings(), kind, MatchBy::parameters, "config.json");
    const auto wanted = static_cast<double>(found.reference.parameters);
    const double off = std::abs(static_cast<double>(found.found.parameters) - wanted);
    const bool square = found.field == "num_experts";
    const auto root = std::llround(std::sqrt(static_cast<double>(found.value)));
    for (const int step : {-1, 1}) {
      Json other = found.model;
      other[found.field] = square                              ? (root + step) * (root + step)
                           : found.field == "n_routed_experts" ? found.value + step
                                                               : found.value + 32 * step;
      if (square && root + step < 3) continue;  // num_experts_per_head
      if (!square && other[found.field].get<std::int64_t>() < 2) continue;
      // A mixture of which every token takes all is none.
      if (found.field == "n_routed_experts" &&
          other.at(found.field) <= other.at("num_experts_per_tok"))
        continue;
      const ModelCounts at =
          counts_of(nn::read_model_config(other, "config.json"), tiny_settings());
      EXPECT_TRUE(off <= std::abs(static_cast<double>(at.parameters) - wanted))
          << kind << ": " << match_text(found);
    }
    // What is far from equal is not passed off as equal.
    EXPECT_EQ(off > 0.05 * wanted,
              match_text(found).find("warning: not equal") != std::string::npos);
  }
}

TEST(Match, RefusesModelsWithOneKindOnly) {
  const Json llama = Json::parse(R"({"model_type": "llama", "hidden_size": 32})");
  EXPECT_THROW(match_model(llama, tiny_settings(), "ethos", MatchBy::flops, "config.json"), Error);
}

TEST(Usage, OfEvenAndOfSingleChoices) {
  // One head chooses four experts alike, the other one of them alone.
  const at::Tensor counts = at::tensor({3, 3, 3, 3, 0, 12, 0, 0}, at::kLong).view({2, 4});
  const at::Tensor found = usage_of(counts);
  const double log4 = std::log(4.0);
  // Together 3, 15, 3, 3 of 24.
  const double both = -3 * 0.125 * std::log(0.125) - 0.625 * std::log(0.625);
  const double expected[3][2] = {{1, log4}, {0.25, 0}, {1, both}};
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 2; ++column) {
      EXPECT_TRUE(std::abs(found[row][column].item<double>() - expected[row][column]) <= 1e-14);
    }
  }
  EXPECT_EQ(usage_of(at::zeros({1, 4}, at::kLong)).abs().sum().item<double>(), 0);
}

}  // namespace
}  // namespace subspace::train
