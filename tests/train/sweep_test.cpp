#include "train/sweep_plan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>

#include "base/atomic_file.h"
#include "base/error.h"
#include "train/sweep_table.h"

namespace subspace::train {
namespace {

class SweepPlanTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::random_device seed;
    folder_ = std::filesystem::temp_directory_path() / fmt::format("subspace_sweep_{}", seed());
    create_folder(folder_);
    write("model.json", R"({"hidden_size": 8, "train": {"steps": 5}})");
  }
  void TearDown() override { remove_tree(folder_); }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
  }
  SweepPlan read(const std::string& text) const {
    write("sweep.json", text);
    return read_sweep(folder_ / "sweep.json");
  }
  std::string refusal(const std::string& text) const {
    try {
      read(text);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::filesystem::path folder_;
};

TEST_F(SweepPlanTest, IsEveryArmWithEveryPointAndEverySeed) {
  const SweepPlan plan = read(R"({
    "arms": [{"name": "A", "config": "model.json"},
             {"name": "B", "config": "model.json", "set": {"o_lora_rank": 3}}],
    "set": {"steps": 7, "hidden_size": 16},
    "grid": {"q_lora_rank": [1, 2], "hidden_act": ["gelu", "swiglu"]},
    "seeds": [4, 9]})");
  ASSERT_EQ(plan.runs.size(), 16U);
  ASSERT_EQ(plan.arms.size(), 8U);
  EXPECT_EQ(plan.arms[1], "A, q_lora_rank 1, hidden_act swiglu");
  const SweepRun& run = plan.runs[11];  // B, first point's second, second seed
  EXPECT_EQ(run.arm, "B, q_lora_rank 1, hidden_act swiglu");
  EXPECT_EQ(run.name, "B_q_lora_rank_1_hidden_act_swiglu_seed_9");
  EXPECT_EQ(run.experiment.model.at("o_lora_rank"), 3);
  EXPECT_EQ(run.experiment.model.at("hidden_size"), 16);
  EXPECT_EQ(run.experiment.model.at("hidden_act"), "swiglu");
  EXPECT_EQ(run.experiment.train.at("steps"), 7);
  EXPECT_EQ(run.experiment.train.at("seed"), 9);
  EXPECT_FALSE(plan.runs[0].experiment.model.contains("o_lora_rank"));
}

TEST_F(SweepPlanTest, OneConfigurationAloneIsAnArmWithItsName) {
  const SweepPlan plan = read(R"({"config": "model.json"})");
  ASSERT_EQ(plan.runs.size(), 1U);
  EXPECT_EQ(plan.runs[0].arm, "model");
  EXPECT_EQ(plan.title, "sweep");
}

TEST_F(SweepPlanTest, RefusesByName) {
  EXPECT_NE(refusal(R"({})").find("no field 'config'"), std::string::npos);
  EXPECT_NE(refusal(R"({"config": "model.json", "gird": {}})").find("gird"), std::string::npos);
  EXPECT_NE(refusal(R"({"config": "model.json", "grid": {"a": 3}})").find("'a' expects a list"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"config": "model.json", "seeds": []})").find("seeds"), std::string::npos);
  EXPECT_NE(refusal(R"({"config": "model.json", "seeds": [-1]})").find("seeds"), std::string::npos);
  EXPECT_NE(refusal(R"({"config": "nowhere.json"})").find("nowhere.json"), std::string::npos);
  EXPECT_NE(refusal(R"({"arms": [{"config": "model.json"}]})").find("name"), std::string::npos);
  EXPECT_NE(refusal(R"({"arms": [{"name": "A", "config": "model.json"},
                                 {"name": "A", "config": "model.json"}]})")
                .find("two are called 'A'"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"config": "model.json", "grid": {"a": [1,2,3,4,5,6,7,8,9,10],
      "b": [1,2,3,4,5,6,7,8,9,10], "c": [1,2,3,4,5,6,7,8,9,10], "d": [1,2,3,4,5,6,7,8,9,10],
      "e": [1, 2]}})")
                .find("10000"),
            std::string::npos);
}

TEST(SweepInterval, IsStudents) {
  // Squares of 1, 2, 4, 9 about their mean: 38.
  const Interval found = interval({1, 2, 4, 9});
  EXPECT_EQ(found.count, 4);
  EXPECT_NEAR(found.mean, 4, 1e-15);
  EXPECT_NEAR(found.half, 3.182446 * std::sqrt(38.0 / 12), 2e-4);
  EXPECT_TRUE(std::isnan(interval({3}).half));
  EXPECT_EQ(interval({3}).mean, 3);
  EXPECT_EQ(interval({2, 2, 2}).half, 0);
  // 40 degrees of freedom: t = 2.021075.
  std::vector<double> many;
  for (int i = 0; i < 41; ++i) many.push_back(i % 2);
  double squares = 0;
  for (const double value : many) squares += (value - 20.0 / 41) * (value - 20.0 / 41);
  EXPECT_NEAR(interval(many).half, 2.021075 * std::sqrt(squares / 40 / 41), 2e-4);
}

TEST(SweepTable, HasMeansOfEachArm) {
  SweepPlan plan;
  plan.arms = {"A", "B"};
  std::vector<Json> runs;
  for (const auto& [arm, loss] : {std::pair("A", 1.0), {"B", 5.0}, {"A", 3.0}}) {
    runs.push_back({{"arm", arm},
                    {"seed", runs.size()},
                    {"fields", {{"r", 4}}},
                    {"numbers", {{"loss", loss}}}});
  }
  const Json table = sweep_table(plan, runs);
  ASSERT_EQ(table.at("arms").size(), 2U);
  EXPECT_EQ(table.at("arms")[0].at("numbers").at("loss").at("mean"), 2.0);
  EXPECT_EQ(table.at("arms")[0].at("numbers").at("loss").at("runs"), 2);
  EXPECT_TRUE(table.at("arms")[1].at("numbers").at("loss").at("half_width_95").is_null());
}

}  // namespace
}  // namespace subspace::train
