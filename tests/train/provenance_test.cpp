#include "train/provenance.h"

#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "base/atomic_file.h"
#include "base/error.h"

namespace subspace::train {
namespace {

Json parsed(const char* text) { return Json::parse(text); }

std::string refused(const Json& before, const Json& now) {
  try {
    require_same_request("runs/one", before, now);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Provenance, TheFirstDifferenceIsNamed) {
  const Json before = parsed(R"({"train": {"steps": 6, "seed": 0}, "data": "a"})");
  EXPECT_EQ(first_difference(before, before), "");
  Json now = before;
  now["train"]["steps"] = 7;
  EXPECT_EQ(first_difference(before, now), "train.steps was 6 and is now 7");
  now = before;
  now["train"].erase("seed");
  EXPECT_EQ(first_difference(before, now), "train.seed was 0 and is now absent");
  now = before;
  now["train"]["warmup"] = 0.5;
  EXPECT_EQ(first_difference(before, now), "train.warmup was absent and is now 0.5");
  now = before;
  now["data"] = "b";
  EXPECT_EQ(first_difference(before, now), R"(data was "a" and is now "b")");
  now.erase("data");
  EXPECT_EQ(first_difference(before, now), R"(data was "a" and is now absent)");
}

TEST(Provenance, NumbersAreTakenForWhatTheyWereMadeFromAlone) {
  const Json now = parsed(R"({"train": {"steps": 6}, "data": "a"})");
  EXPECT_EQ(refused({{"asked_for", now}}, now), "");
  Json before = {{"asked_for", now}};
  before["asked_for"]["data"] = "b";
  EXPECT_NE(refused(before, now).find(R"(data was "b" and is now "a")"), std::string::npos);
  before["asked_for"].erase("data");
  EXPECT_NE(refused(before, now).find("'data'"), std::string::npos) << refused(before, now);
  EXPECT_NE(refused(before, now).find("older version"), std::string::npos);
  EXPECT_NE(refused(Json::object(), now).find("asked_for"), std::string::npos);
}

TEST(Provenance, WeightsAreKnownByTheirBytes) {
  std::random_device seed;
  const auto folder =
      std::filesystem::temp_directory_path() / fmt::format("subspace_provenance_{}", seed());
  create_folder(folder);
  const std::string header = R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  auto write = [&](char value) {
    std::ofstream file(folder / "model.safetensors", std::ios::binary);
    file << static_cast<char>(header.size()) << std::string(7, '\0') << header
         << std::string(3, '\0') << value;
  };
  std::ofstream(folder / "config.json") << "{}";
  write(1);
  const std::string one = weights_sha256(folder);
  EXPECT_EQ(one.size(), 64U);
  EXPECT_EQ(weights_sha256(folder), one);
  write(2);
  EXPECT_NE(weights_sha256(folder), one);
  remove_tree(folder);
}

}  // namespace
}  // namespace subspace::train
