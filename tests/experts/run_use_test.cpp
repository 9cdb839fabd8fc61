#include "experts/run_use.h"

#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "base/atomic_file.h"
#include "base/error.h"

namespace subspace::experts {
namespace {
namespace fs = std::filesystem;

struct RunFolder {
  RunFolder() {
    std::random_device seed;
    path = fs::temp_directory_path() / fmt::format("subspace_use_{}", seed());
    create_folder(path);
  }
  ~RunFolder() { remove_tree(path); }
  void write(const std::string& text) const { std::ofstream(path / "metrics.jsonl") << text; }
  fs::path path;
};

std::string line(int step) {
  return fmt::format(R"({{"step": {}, "loss": 2, "tokens": {}, "experts": {{"3": {{"used": 0.5,)"
                     R"( "entropy": {}, "kl_uniform": 1}}}}}})"
                     "\n",
                     step, 10 * step, step);
}

TEST(UseWhileTraining, IsAColumnANumber) {
  const RunFolder folder;
  EXPECT_TRUE(use_while_training(folder.path).is_null()) << "no file";
  folder.write(R"({"step": 1, "loss": 3})"
               "\n");
  EXPECT_TRUE(use_while_training(folder.path).is_null()) << "a dense model's";
  folder.write(line(1) +
               R"({"step": 1, "eval": {"loss": 3}})"
               "\n" +
               line(2) + R"({"step": 3, "lo)");
  const Json found = use_while_training(folder.path);
  EXPECT_EQ(found.at("step"), Json({1, 2}));
  EXPECT_EQ(found.at("tokens"), Json({10.0, 20.0}));
  EXPECT_EQ(found.at("layers").at("3").at("entropy"), Json({1.0, 2.0}));
}

TEST(UseWhileTraining, LongRunsAreThinnedAndKeepTheirEnd) {
  const RunFolder folder;
  std::string text;
  for (int step = 1; step <= 1203; ++step) text += line(step);
  folder.write(text);
  const Json found = use_while_training(folder.path);
  EXPECT_LE(found.at("step").size(), 400U);
  EXPECT_EQ(found.at("step").back(), 1203);
  EXPECT_EQ(found.at("layers").at("3").at("used").size(), found.at("step").size());
}

TEST(UseWhileTraining, NamesTheLineOfAWrongField) {
  const RunFolder folder;
  std::string wrong = line(2);
  wrong.replace(wrong.find("\"used\""), 6, "\"use\"");
  folder.write(line(1) + wrong);
  try {
    use_while_training(folder.path);
    FAIL() << "a line without `used` was taken";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("line 2"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("used"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace subspace::experts
