#include "lora/embeddings.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "lora/close.h"
#include "lora/tiny_files.h"

namespace subspace {
namespace {

using testing::expect_close;
using testing::Scratch;
using testing::TinyTensors;

constexpr std::int64_t kVocabulary = 11, kColumns = 5;

/// GPT-2's names: tied embeddings, a LayerNorm in front of the logits.
struct TiedModel {
  TiedModel() {
    std::ofstream(folder.path / "config.json") << R"({"model_type": "gpt2"})";
    tensors.shapes["wte.weight"] = {kVocabulary, kColumns};
    tensors.shapes["ln_f.weight"] = {kColumns};
    tensors.shapes["ln_f.bias"] = {kColumns};
    tensors.write(folder.path / "model.safetensors");
  }
  at::Tensor stored(const std::string& name) const {
    const at::Tensor all = at::tensor(tensors.values.at(name), at::kDouble);
    return name == "wte.weight" ? all.view({kVocabulary, kColumns}) : all;
  }
  Scratch folder;
  TinyTensors tensors;
};

TEST(Embeddings, TheFinalLayerNormIsFoldedIntoATiedOutput) {
  const TiedModel model;
  const Checkpoint checkpoint(model.folder.path);
  const TokenTable input = input_embedding(checkpoint, 1), output = output_embedding(checkpoint, 1);
  EXPECT_EQ(input.name, "wte.weight");
  EXPECT_EQ(output.name, "wte.weight");
  const at::Tensor centre = at::eye(kColumns, at::kDouble) - 1.0 / kColumns;
  at::Tensor wanted = at::matmul(model.stored("wte.weight"), at::diag(model.stored("ln_f.weight")));
  wanted = at::matmul(wanted, centre);
  wanted = wanted - wanted.mean(0, true);
  expect_close(output.rows.to(at::kDouble), wanted, 1e-6);
  expect_close(token_map(input, output), at::matmul(wanted.t(), model.stored("wte.weight")), 1e-6);
}

TEST(Embeddings, MomentsAreOfWhatTheFirstLayerReads) {
  const TiedModel model;
  const TokenTable input = input_embedding(Checkpoint(model.folder.path), 1);
  const at::Tensor rows = input.rows.to(at::kDouble);
  expect_close(embedding_moment(input, {}, false), at::matmul(rows.t(), rows) / kVocabulary, 1e-12);
  const Norm norm = {Norm::Kind::layer, at::arange(1, kColumns + 1, at::kDouble),
                     at::full({kColumns}, 0.3, at::kDouble), 1e-3};
  const at::Tensor read = at::layer_norm(rows, {kColumns}, norm.weight, norm.bias, norm.eps);
  expect_close(embedding_moment(input, norm, false), at::matmul(read.t(), read) / kVocabulary,
               1e-12);
  // Folded: the circuit has the centring and gamma, so the two reads agree once multiplied.
  const at::Tensor folded = embedding_moment(input, norm, true);
  const at::Tensor centre = at::eye(kColumns, at::kDouble) - 1.0 / kColumns;
  const at::Tensor fold = at::matmul(centre, at::diag(norm.weight));
  const at::Tensor plain = read - norm.bias;
  expect_close(at::matmul(at::matmul(fold.t(), folded), fold),
               at::matmul(plain.t(), plain) / kVocabulary, 1e-12);
}

TEST(Embeddings, WhatIsMissingOrDoesNotFitIsNamed) {
  Scratch folder;
  std::ofstream(folder.path / "config.json") << "{}";
  TinyTensors tensors;
  tensors.shapes["layers.0.weight"] = {2, 2};
  tensors.write(folder.path / "model.safetensors");
  EXPECT_THROW(input_embedding(Checkpoint(folder.path), 1), Error);
  const TokenTable four = {"four", at::ones({3, 4})}, five = {"five", at::ones({3, 5})};
  try {
    token_map(four, five);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidShape);
    EXPECT_NE(std::string(error.what()).find("'four' is 4 wide"), std::string::npos);
  }
}

}  // namespace
}  // namespace subspace
