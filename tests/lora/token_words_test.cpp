#include "lora/token_words.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "lora/tiny_files.h"

namespace subspace {
namespace {

using testing::Scratch;
using testing::TinyTensors;

constexpr std::int64_t kTokens = 20, kWidth = 6;

struct Model {
  Model() {
    std::ofstream(folder.path / "config.json") << "{}";
    tensors.shapes["model.embed_tokens.weight"] = {kTokens, kWidth};
    tensors.write(folder.path / "model.safetensors");
  }
  /// What points along token `id` once the mean is taken out, of length one.
  at::Tensor direction(std::int64_t id) const {
    const at::Tensor all = at::tensor(tensors.values.at("model.embed_tokens.weight"), at::kDouble)
                               .view({kTokens, kWidth});
    const at::Tensor row = (all - all.mean(0, true))[id];
    return row / row.norm();
  }
  Scratch folder;
  TinyTensors tensors;
};

TEST(TokenWords, ADirectionAlongATokenFindsIt) {
  Model model;
  Json vocabulary = Json::object();
  for (int id = 0; id < kTokens - 1; ++id) vocabulary["word" + std::to_string(id)] = id;
  vocabulary["\u0120seven"] = 7;
  vocabulary.erase("word7");
  std::ofstream(model.folder.path / "tokenizer.json")
      << Json({{"model", {{"vocab", vocabulary}}},
               {"added_tokens", {{{"id", kTokens - 1}, {"content", "<end>"}}}}})
             .dump();
  Scratch run;
  TinyTensors values;
  const std::string name = "layers.3.VO.shared.v.directions";
  values.shapes[name] = {2, kWidth};
  const at::Tensor rows =
      at::stack({model.direction(7), -model.direction(kTokens - 1)}).contiguous();
  values.values[name].assign(rows.data_ptr<double>(), rows.data_ptr<double>() + rows.numel());
  values.shapes["layers.3.QK.shared.q_b.directions"] = {2, 4};  // of a latent
  values.write(run.path / "heads.safetensors");
  const Checkpoint checkpoint(model.folder.path);
  const Json words = token_words(run.path / "heads.safetensors", checkpoint, 1);
  ASSERT_EQ(words.at("features").size(), 2U);
  const Json& first = words.at("features")[0];
  EXPECT_EQ(first.at("layer"), 3);
  EXPECT_EQ(first.at("circuit"), "VO");
  EXPECT_EQ(first.at("change"), "v");
  EXPECT_EQ(first.at("along")[0].at("token"), "\u2581seven");
  EXPECT_NEAR(first.at("along")[0].at("cosine").get<double>(), 1, 1e-6);
  EXPECT_EQ(words.at("features")[1].at("against")[0].at("token"), "<end>");
  EXPECT_GT(words.at("random_cosine").get<double>(), 0.3);
  EXPECT_LT(words.at("random_cosine").get<double>(), 1);
}

TEST(TokenWords, VocabulariesOfOtherFilesAreRead) {
  Scratch folder;
  std::ofstream(folder.path / "vocab.txt") << "[PAD]\nthe\n";
  EXPECT_EQ(read_vocabulary(folder.path), (std::vector<std::string>{"[PAD]", "the"}));
  std::ofstream(folder.path / "tokenizer.json")
      << R"({"model": {"vocab": [["a", -1], ["b", -2]]}})";
  EXPECT_EQ(read_vocabulary(folder.path), (std::vector<std::string>{"a", "b"}));
  std::ofstream(folder.path / "tokenizer.json") << R"({"model": {"vocab": {"a": 99999999999}}})";
  EXPECT_THROW(read_vocabulary(folder.path), Error);
}

TEST(TokenWords, WhatIsMissingIsNamed) {
  Model model;
  const Checkpoint checkpoint(model.folder.path);
  EXPECT_THROW(token_words(model.folder.path / "none", checkpoint, 1), Error);
  std::ofstream(model.folder.path / "vocab.txt") << "a\n";
  Scratch run;
  TinyTensors values;
  values.shapes["layers.0.QK.base"] = {2, 4};
  values.write(run.path / "heads.safetensors");
  try {
    token_words(run.path / "heads.safetensors", checkpoint, 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::NotFound);
    EXPECT_NE(std::string(error.what()).find("lora heads"), std::string::npos);
  }
}

}  // namespace
}  // namespace subspace
