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
  const std::string vectors = "layers.3.VO.vectors.delta.right";
  values.shapes[vectors] = {1, 1, kWidth};
  values.values[vectors].assign(rows.data_ptr<double>(), rows.data_ptr<double>() + kWidth);
  values.write(run.path / "heads.safetensors");
  const Checkpoint checkpoint(model.folder.path);
  const Json words = token_words(run.path / "heads.safetensors", checkpoint);
  ASSERT_EQ(words.at("features").size(), 2U);
  const Json& first = words.at("features")[0];
  EXPECT_EQ(first.at("layer"), 3);
  EXPECT_EQ(first.at("circuit"), "VO");
  EXPECT_EQ(first.at("change"), "v");
  EXPECT_EQ(first.at("along")[0].at("token"), "\u2581seven");
  EXPECT_NEAR(first.at("along")[0].at("cosine").get<double>(), 1, 1e-6);
  EXPECT_EQ(words.at("features")[1].at("against")[0].at("token"), "<end>");
  ASSERT_EQ(words.at("heads").size(), 1U);
  const Json& head = words.at("heads")[0];
  EXPECT_EQ(head.at("head"), 0);
  EXPECT_EQ(head.at("which"), "delta");
  EXPECT_EQ(head.at("side"), "right");
  // Without an output embedding, words are written as they are read.
  EXPECT_EQ(head.at("along")[0].at("token"), "\u2581seven");
  EXPECT_NEAR(head.at("along")[0].at("cosine").get<double>(), 1, 1e-6);
  EXPECT_GT(words.at("random_cosine").get<double>(), 0.3);
  EXPECT_LT(words.at("random_cosine").get<double>(), 1);
}

TEST(TokenWords, NormsAndTheOutputEmbeddingAreInBetween) {
  Model model;
  model.tensors.shapes["lm_head.weight"] = {kTokens, kWidth};
  model.tensors.shapes["model.norm.weight"] = {kWidth};
  model.tensors.write(model.folder.path / "model.safetensors");
  std::ofstream(model.folder.path / "vocab.txt") << "a\nb\nc\n";
  const auto tensor = [&](const char* name) {
    return at::tensor(model.tensors.values.at(name), at::kDouble);
  };
  const at::Tensor gamma = at::arange(1, kWidth + 1, at::kDouble);
  // What makes q read token 1 once its input is normed, and what a head writes to be logit 2.
  const at::Tensor read = model.direction(1) / gamma;
  const at::Tensor heads =
      tensor("lm_head.weight").view({kTokens, kWidth}) * tensor("model.norm.weight");
  const at::Tensor written = (heads - heads.mean(0, true))[2];
  Scratch run;
  TinyTensors values;
  for (const auto& [name, row] : {std::pair{"layers.1.QK.shared.q.directions", read},
                                  {"layers.1.VO.shared.o.directions", written}}) {
    const at::Tensor unit = (row / row.norm()).contiguous();
    values.shapes[name] = {1, kWidth};
    values.values[name].assign(unit.data_ptr<double>(), unit.data_ptr<double>() + kWidth);
  }
  values.write(run.path / "heads.safetensors");
  const Checkpoint checkpoint(model.folder.path);
  TokenOptions options;
  options.norms = [&](std::int64_t layer) {
    EXPECT_EQ(layer, 1);
    AttentionLayer norms;
    norms.input = {Norm::Kind::rms, gamma, {}, 0};
    return norms;
  };
  const Json words = token_words(run.path / "heads.safetensors", checkpoint, options);
  EXPECT_EQ(words.at("written").at("embedding"), "lm_head.weight");
  for (const Json& one : words.at("features")) {
    EXPECT_EQ(one.at("along")[0].at("token"), one.at("change") == "q" ? "b" : "c");
    EXPECT_NEAR(one.at("along")[0].at("cosine").get<double>(), 1, 1e-6);
  }
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
  EXPECT_THROW(token_words(model.folder.path / "none", checkpoint), Error);
  std::ofstream(model.folder.path / "vocab.txt") << "a\n";
  Scratch run;
  TinyTensors values;
  values.shapes["layers.0.QK.base"] = {2, 4};
  values.write(run.path / "heads.safetensors");
  try {
    token_words(run.path / "heads.safetensors", checkpoint);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::NotFound);
    EXPECT_NE(std::string(error.what()).find("lora heads"), std::string::npos);
  }
}

}  // namespace
}  // namespace subspace
