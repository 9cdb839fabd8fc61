#include "train/settings.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace subspace::train {
namespace {

Json good() { return Json::parse(R"({"batch_size": 4, "steps": 100, "learning_rate": 0.01})"); }

TEST(Settings, ComeBackAsTheyWereWritten) {
  Json json = good();
  json["decay"] = "cosine";
  json["separate_documents"] = true;
  json["seed"] = 7;
  const Json whole = to_json(read_settings(json, "config.json"));
  EXPECT_EQ(to_json(read_settings(whole, "config.json")), whole);
  EXPECT_EQ(whole.at("seed"), 7);
}

struct Bad {
  const char* name;
  const char* field;
  const char* value;
  const char* says;
};

class BadSettings : public ::testing::TestWithParam<Bad> {};

TEST_P(BadSettings, AreRefusedByName) {
  Json json = good();
  json[GetParam().field] = Json::parse(GetParam().value);
  try {
    read_settings(json, "config.json");
    FAIL() << "accepted";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find(GetParam().field), std::string::npos) << text;
    EXPECT_NE(text.find(GetParam().says), std::string::npos) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Rules, BadSettings,
    ::testing::Values(Bad{"misspelt", "learningrate", "0.1", "'learning_rate'"},
                      Bad{"no_rows", "batch_size", "0", "0"},
                      Bad{"no_steps", "steps", "null", "steps"},
                      Bad{"negative_rate", "learning_rate", "-1", "from 0"},
                      Bad{"share", "warmup", "1.5", "from 0 to 1"},
                      Bad{"nothing_masked", "mask_probability", "0", "nothing to predict"},
                      Bad{"decay", "decay", "\"stairs\"", "cosine"},
                      Bad{"precision", "precision", "\"float8\"", "bfloat16"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Settings, LearningRateWarmsUpAndFalls) {
  Settings s;
  s.steps = 100;
  s.learning_rate = 2;
  s.warmup = 0.1;
  EXPECT_DOUBLE_EQ(learning_rate_at(s, 0), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate_at(s, 9), 2);
  EXPECT_DOUBLE_EQ(learning_rate_at(s, 10), 2);
  EXPECT_DOUBLE_EQ(learning_rate_at(s, 55), 1);
  EXPECT_DOUBLE_EQ(learning_rate_at(s, 99), 2.0 / 90);
  s.decay = "cosine";
  EXPECT_DOUBLE_EQ(learning_rate_at(s, 10), 2);
  EXPECT_NEAR(learning_rate_at(s, 55), 1, 1e-12);
  EXPECT_GT(learning_rate_at(s, 99), 0);
  s.decay = "none";
  EXPECT_DOUBLE_EQ(learning_rate_at(s, 99), 2);
  s.warmup = 1;
  EXPECT_DOUBLE_EQ(learning_rate_at(s, 99), 2);
}

TEST(Settings, SetsGoWhereTheirNameBelongs) {
  const auto file = std::filesystem::temp_directory_path() / "subspace_settings_test.json";
  std::ofstream(file) << R"({"hidden_size": 8, "q_lora_rank": 4, "train": {"steps": 5}})";
  const Experiment e = read_experiment(
      file, {"steps=7", "hidden_size=16", "q_lora_rank=null", "attention=mla", "decay=cosine"});
  std::filesystem::remove(file);
  EXPECT_EQ(e.train, Json::parse(R"({"steps": 7, "decay": "cosine"})"));
  EXPECT_EQ(e.model, Json::parse(R"({"hidden_size": 16, "attention": "mla"})"));
  EXPECT_THROW(read_experiment(file, {}), Error);
  std::ofstream(file) << "{}";
  EXPECT_THROW(read_experiment(file, {"steps"}), Error);
  std::filesystem::remove(file);
}

}  // namespace
}  // namespace subspace::train
