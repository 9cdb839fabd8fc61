#include "report/training_run.h"

#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "base/atomic_file.h"
#include "base/error.h"

namespace subspace {
namespace {
namespace fs = std::filesystem;

struct Folder {
  Folder() {
    std::random_device seed;
    path = fs::temp_directory_path() / fmt::format("subspace_training_{}", seed()) / "mla_seed_3";
    create_folder(path);
    write("run.json", R"({"model": {"hidden_size": 8}, "train": {"seed": 3, "steps": 7},
                          "data": "abc", "device": "cpu"})");
  }
  ~Folder() { remove_tree(path.parent_path()); }
  void write(const char* name, const std::string& text) const {
    std::ofstream(path / name) << text;
  }
  fs::path path;
};

std::string logged(int step) {
  return fmt::format(R"({{"step": {}, "loss": 2.5, "lr": 0.1, "grad_norm": 1, "tokens": {},)"
                     R"( "tokens_per_second": 5, "seconds": {}}})"
                     "\n",
                     step, 10 * step, 2 * step);
}

TEST(TrainingRun, NamesWithoutTheirSeeds) {
  EXPECT_EQ(without_seed("mla-o_seed_2"), "mla-o");
  EXPECT_EQ(without_seed("MLA-o-seed12"), "MLA-o");
  EXPECT_EQ(without_seed("seed_0"), "");
  EXPECT_EQ(without_seed("width_64"), "width_64");
  EXPECT_EQ(without_seed("linseed"), "linseed");
  EXPECT_EQ(without_seed("7"), "7");
}

TEST(TrainingRun, HasColumnsOfBothKindsOfLines) {
  const Folder folder;
  folder.write("metrics.jsonl", logged(1) + logged(2) +
                                    R"({"step": 2, "eval": {"loss": 3, "accuracy": 0.5}})"
                                    "\n" +
                                    R"({"step": 3, "lo)");
  const TrainingRun run = read_training_run(folder.path);
  EXPECT_EQ(run.name, "mla_seed_3");
  EXPECT_EQ(run.seed, 3);
  EXPECT_FALSE(run.train.contains("seed"));
  EXPECT_EQ(run.steps.at("step"), Json({1, 2}));
  EXPECT_EQ(run.steps.at("tokens"), Json({10, 20}));
  EXPECT_EQ(run.evaluations.at("tokens"), Json::array({20}));
  EXPECT_EQ(run.evaluations.at("loss"), Json::array({3}));
  EXPECT_TRUE(run.evaluations.at("perplexity")[0].is_null());
  EXPECT_FALSE(run.parameters.has_value());
}

TEST(TrainingRun, KeepsTheLastStepOfThoseThatAreThinned) {
  const Folder folder;
  std::string text;
  for (int step = 1; step <= 103; ++step) text += logged(step);
  folder.write("metrics.jsonl", text);
  for (const std::size_t most : {1, 10, 50, 103, 200}) {
    const Json steps = read_training_run(folder.path, most).steps.at("step");
    EXPECT_LE(steps.size(), most);
    EXPECT_GE(2 * steps.size(), std::min<std::size_t>(most, 103));
    EXPECT_EQ(steps.back(), 103);
  }
}

TEST(TrainingRun, NamesTheLineThatIsWrong) {
  const Folder folder;
  folder.write("metrics.jsonl", logged(2) + logged(1));
  try {
    read_training_run(folder.path);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("metrics.jsonl: line 2"), std::string::npos);
  }
}

}  // namespace
}  // namespace subspace
