#include "attention/family.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "attention/tiny_llama.h"
#include "base/error.h"

namespace subspace {
namespace {

using testing::TinyLlama;

/// The refusal of opening the model and loading its layer 1.
Error refusal(const TinyLlama& model, std::int64_t layer = 1) {
  model.write();
  try {
    const Checkpoint checkpoint(model.folder);
    open_family(checkpoint)->load(layer, 1);
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorCode::Internal, "nothing was refused");
}

void expect_words(const Error& error, const std::vector<std::string>& words) {
  const std::string text = error.what();
  for (const std::string& word : words) {
    EXPECT_NE(text.find(word), std::string::npos) << "no '" << word << "' in: " << text;
  }
}

TEST(Family, HeadsAreTheRowsOfTheStoredMatrices) {
  TinyLlama model;
  model.write();
  const Checkpoint checkpoint(model.folder);
  const AttentionLayer layer = open_family(checkpoint)->load(1, 1);
  ASSERT_EQ(layer.index, 1);
  ASSERT_EQ(layer.q.sizes(), at::IntArrayRef({6, 14, 4}));
  ASSERT_EQ(layer.k.sizes(), at::IntArrayRef({2, 14, 4}));
  ASSERT_EQ(layer.o.sizes(), at::IntArrayRef({6, 4, 14}));
  EXPECT_FALSE(layer.q_bias.defined());
  const auto& q = model.values("model.layers.1.self_attn.q_proj.weight");
  const auto& o = model.values("model.layers.1.self_attn.o_proj.weight");
  for (std::int64_t head = 0; head < 6; ++head) {
    for (std::int64_t d = 0; d < 14; ++d) {
      for (std::int64_t j = 0; j < 4; ++j) {
        const auto row = static_cast<std::size_t>(head * 4 + j),
                   column = static_cast<std::size_t>(d);
        EXPECT_EQ(layer.q.index({head, d, j}).item<double>(), q[row * 14 + column]);
        EXPECT_EQ(layer.o.index({head, j, d}).item<double>(), o[column * 24 + row]);
      }
    }
  }
}

TEST(Family, NeededListsWhatLoadReadsAndReadsNothing) {
  TinyLlama model;
  model.write();
  const Checkpoint checkpoint(model.folder);
  const auto family = open_family(checkpoint);
  const auto needed = family->needed(0);
  EXPECT_EQ(checkpoint.bytes_read(), 0U);
  ASSERT_EQ(needed.size(), 5U);
  std::uint64_t bytes = 0;
  for (const auto& tensor : needed) {
    EXPECT_EQ(tensor.shape, model.shapes.at(tensor.name)) << tensor.name;
    bytes += checkpoint.info(tensor.name).bytes();
  }
  family->load(0, 1);
  EXPECT_EQ(checkpoint.bytes_read(), bytes);
}

TEST(Family, BiasesAreReadWhereTheCheckpointHasThem) {
  TinyLlama model;
  model.shapes["model.layers.1.self_attn.k_proj.bias"] = {8};
  model.write();
  const Checkpoint checkpoint(model.folder);
  const auto family = open_family(checkpoint);
  EXPECT_FALSE(family->load(0, 1).k_bias.defined());
  const at::Tensor bias = family->load(1, 1).k_bias;
  ASSERT_EQ(bias.sizes(), at::IntArrayRef({2, 4}));
  EXPECT_EQ(bias.index({1, 2}).item<double>(),
            model.values("model.layers.1.self_attn.k_proj.bias")[6]);
}

TEST(Family, WrongShapeNamesTensorFoundAndExpected) {
  TinyLlama model;
  model.shapes["model.layers.1.self_attn.v_proj.weight"] = {9, 14};
  const Error error = refusal(model);
  EXPECT_EQ(error.code(), ErrorCode::InvalidShape);
  expect_words(error, {"model.layers.1.self_attn.v_proj.weight", "[9, 14]", "[8, 14]"});
}

TEST(Family, MissingTensorIsNamed) {
  TinyLlama model;
  model.shapes.erase("model.layers.1.self_attn.o_proj.weight");
  const Error error = refusal(model);
  EXPECT_EQ(error.code(), ErrorCode::NotFound);
  expect_words(error, {"model.layers.1.self_attn.o_proj.weight"});
}

TEST(Family, MissingFieldIsNamed) {
  TinyLlama model;
  model.config.erase("num_attention_heads");
  const Error error = refusal(model);
  EXPECT_EQ(error.code(), ErrorCode::NotFound);
  expect_words(error, {"config.json", "num_attention_heads"});
}

TEST(Family, HeadsThatGroupsDoNotDivideAreRefused) {
  TinyLlama model;
  model.config["num_key_value_heads"] = 4;
  const Error error = refusal(model);
  EXPECT_EQ(error.code(), ErrorCode::InvalidValue);
  expect_words(error, {"num_attention_heads 6", "num_key_value_heads 4"});
}

TEST(Family, LayersOutOfRangeAreRefused) {
  TinyLlama model;
  for (const std::int64_t layer : {-1, 2}) {
    const Error error = refusal(model, layer);
    EXPECT_EQ(error.code(), ErrorCode::InvalidValue);
    expect_words(error, {std::to_string(layer), "0 to 1"});
  }
}

TEST(Family, UnknownTypeIsRefusedWithTheKnownOnes) {
  TinyLlama model;
  model.config["model_type"] = "novel_model";
  const Error error = refusal(model);
  EXPECT_EQ(error.code(), ErrorCode::Unsupported);
  expect_words(error, known_model_types());
  expect_words(error, {"novel_model"});
}

TEST(Family, KnownTypesAreSorted) {
  const auto known = known_model_types();
  EXPECT_GE(known.size(), 15U);
  EXPECT_TRUE(std::is_sorted(known.begin(), known.end()));
}

TEST(Family, UnknownRopeIsRefusedByName) {
  TinyLlama model;
  model.config["rope_scaling"] = {{"rope_type", "spiral"}};
  const Error error = refusal(model);
  EXPECT_EQ(error.code(), ErrorCode::Unsupported);
  expect_words(error, {"spiral", "llama3"});
}

}  // namespace
}  // namespace subspace
