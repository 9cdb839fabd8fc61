// Adapters on disk: what is read, what is refused, and how A and B are cut into heads.

#include "lora/adapter.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "base/error.h"
#include "lora/adapted_model.h"
#include "lora/tiny_files.h"

namespace subspace {
namespace {

using testing::TinyAdapter;
using testing::TinyGpt2;

Error refusal(const TinyAdapter& adapter, const TinyGpt2* base = nullptr) {
  adapter.write();
  try {
    Adapter opened(adapter.folder.path);
    if (!base) {
      for (const auto& [path, module] : opened.modules()) opened.a(module), opened.b(module);
      return Error(ErrorCode::Internal, "nothing was refused");
    }
    base->write();
    AdaptedModel model(base->folder.path, std::move(opened));
    model.change(0, 1);
    model.change(1, 1);
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorCode::Internal, "nothing was refused");
}

void expect(const Error& error, ErrorCode code, const std::vector<std::string>& words) {
  EXPECT_EQ(error.code(), code) << error.what();
  for (const std::string& word : words) {
    EXPECT_NE(std::string(error.what()).find(word), std::string::npos)
        << "no '" << word << "' in: " << error.what();
  }
}

at::Tensor matrix(const testing::TinyTensors& tensors, const std::string& name) {
  return at::tensor(tensors.values.at(name), at::kDouble).view(tensors.shapes.at(name));
}

double error_of(const at::Tensor& found, const at::Tensor& expected) {
  if (found.sizes() != expected.sizes()) return INFINITY;
  return (found - expected).abs().max().item<double>();
}

TEST(Adapter, FusedConv1DIsCutIntoHeadsOfOneA) {
  TinyGpt2 base;
  TinyAdapter adapter;
  base.write();
  adapter.write();
  const AdaptedModel model(base.folder.path, Adapter(adapter.folder.path));
  const LayerChange change = model.change(1, 1);
  ASSERT_EQ(change.q.a.sizes(), at::IntArrayRef({1, 12, 2}));
  ASSERT_EQ(change.q.b.sizes(), at::IntArrayRef({3, 2, 4}));
  EXPECT_TRUE(change.k.a.is_same(change.q.a));
  EXPECT_TRUE(change.v.a.is_same(change.q.a));
  EXPECT_FALSE(change.o.defined());
  EXPECT_FALSE(change.q_bias.defined());
  EXPECT_FALSE(change.input.has_value());
  const at::Tensor a = matrix(adapter.tensors, TinyAdapter::key(1, "lora_A.weight"));
  const at::Tensor b = matrix(adapter.tensors, TinyAdapter::key(1, "lora_B.weight")) * 3;
  EXPECT_EQ(error_of(change.k.a[0], a.t()), 0);
  // Part p of head i: rows p d + i d_h of B.
  EXPECT_EQ(error_of(change.q.b[2], b.narrow(0, 8, 4).t()), 0);
  EXPECT_EQ(error_of(change.k.b[1], b.narrow(0, 12 + 4, 4).t()), 0);
  EXPECT_EQ(error_of(change.v.b[0], b.narrow(0, 24, 4).t()), 0);
}

TEST(Adapter, MergedIsTheStoredMatrixPlusTheTransposedProduct) {
  TinyGpt2 base;
  TinyAdapter adapter;
  adapter.config["target_modules"] = {"c_attn", "c_proj"};
  const std::string projection = "base_model.model.transformer.h.0.attn.c_proj.";
  adapter.tensors.shapes[projection + "lora_A.weight"] = {2, 12};
  adapter.tensors.shapes[projection + "lora_B.weight"] = {12, 2};
  base.write();
  adapter.write();
  const AdaptedModel model(base.folder.path, Adapter(adapter.folder.path));
  const LayerChange change = model.change(0, 1);
  ASSERT_EQ(change.o.a.sizes(), at::IntArrayRef({3, 4, 2}));
  ASSERT_EQ(change.o.b.sizes(), at::IntArrayRef({1, 2, 12}));
  const at::Tensor a = matrix(adapter.tensors, projection + "lora_A.weight");
  const at::Tensor b = matrix(adapter.tensors, projection + "lora_B.weight");
  const at::Tensor expected =
      matrix(base.tensors, "h.0.attn.c_proj.weight") + 3 * at::matmul(b, a).t();
  const at::Tensor found = merged(model.load(0, 1), change).o;
  EXPECT_LE(error_of(found.reshape({12, 12}), expected), 1e-14);
}

TEST(Adapter, RankAndAlphaPatternsAndRsloraSetTheScale) {
  TinyGpt2 base;
  TinyAdapter adapter;
  adapter.config["use_rslora"] = true;
  adapter.config["rank_pattern"] = {{"h.1.attn.c_attn", 5}, {"c_attn", 2}};
  adapter.config["alpha_pattern"] = {{"h.1.*", 10}};
  adapter.tensors.shapes[TinyAdapter::key(1, "lora_A.weight")] = {5, 12};
  adapter.tensors.shapes[TinyAdapter::key(1, "lora_B.weight")] = {36, 5};
  adapter.write();
  const Adapter opened(adapter.folder.path);
  EXPECT_EQ(opened.modules().at("h.0.attn.c_attn").scale, 6 / std::sqrt(2.0));
  EXPECT_EQ(opened.modules().at("h.1.attn.c_attn").scale, 10 / std::sqrt(5.0));
}

TEST(Adapter, DumpsOfMemoryAreRead) {
  TinyAdapter adapter;
  adapter.tensors.shapes.clear();
  adapter.tensors.shapes[TinyAdapter::key(0, "lora_A.default.weight")] = {2, 12};
  adapter.tensors.shapes[TinyAdapter::key(0, "lora_B.default.weight")] = {36, 2};
  adapter.write();
  EXPECT_EQ(Adapter(adapter.folder.path).modules().size(), 1U);
  adapter.tensors.shapes[TinyAdapter::key(1, "lora_A.other.weight")] = {2, 12};
  expect(refusal(adapter), ErrorCode::Unsupported, {"'default' and 'other'"});
}

TEST(Adapter, DoraGainsAreMagnitudesOverNormsOfColumns) {
  TinyGpt2 base;
  TinyAdapter adapter;
  adapter.config["use_dora"] = true;
  for (int layer : {0, 1}) {
    adapter.tensors.shapes[TinyAdapter::key(layer, "lora_magnitude_vector")] = {36};
  }
  base.write();
  adapter.write();
  const AdaptedModel model(base.folder.path, Adapter(adapter.folder.path));
  const LayerChange change = model.change(0, 1);
  ASSERT_EQ(change.k.gain.sizes(), at::IntArrayRef({3, 4}));
  // Row-vector form: the columns of W + A B, which Conv1D stores as they are.
  const at::Tensor updated =
      matrix(base.tensors, "h.0.attn.c_attn.weight") +
      3 * at::matmul(matrix(adapter.tensors, TinyAdapter::key(0, "lora_B.weight")),
                     matrix(adapter.tensors, TinyAdapter::key(0, "lora_A.weight")))
              .t();
  const at::Tensor gain =
      matrix(adapter.tensors, TinyAdapter::key(0, "lora_magnitude_vector")) / updated.norm(2, 0);
  EXPECT_LE(error_of(change.k.gain.flatten(), gain.narrow(0, 12, 12)), 1e-13);
  const at::Tensor expected = (updated * gain).narrow(1, 24, 12);
  const at::Tensor found = merged(model.load(0, 1), change).v;
  EXPECT_LE(error_of(found.transpose(0, 1).reshape({12, 12}), expected), 1e-13);
}

TEST(Adapter, TensorsSavedWholeBecomeDifferencesAndNorms) {
  TinyGpt2 base;
  TinyAdapter adapter;
  adapter.config["bias"] = "all";
  const std::string block = "base_model.model.transformer.h.0.";
  adapter.tensors.shapes[block + "attn.c_attn.base_layer.bias"] = {36};
  adapter.tensors.shapes[block + "ln_1.bias"] = {12};
  adapter.tensors.shapes[block + "attn.c_proj.weight"] = {12, 12};
  base.write();
  adapter.write();
  const AdaptedModel model(base.folder.path, Adapter(adapter.folder.path));
  const LayerChange change = model.change(0, 1);
  const AttentionLayer after = merged(model.load(0, 1), change);
  EXPECT_LE(
      error_of(after.k_bias.flatten(),
               matrix(adapter.tensors, block + "attn.c_attn.base_layer.bias").narrow(0, 12, 12)),
      1e-14);
  ASSERT_TRUE(change.input.has_value());
  EXPECT_EQ(error_of(after.input.bias, matrix(adapter.tensors, block + "ln_1.bias")), 0);
  EXPECT_EQ(error_of(after.input.weight, matrix(base.tensors, "h.0.ln_1.weight")), 0);
  ASSERT_TRUE(change.o.full.defined());
  EXPECT_LE(
      error_of(after.o.reshape({12, 12}), matrix(adapter.tensors, block + "attn.c_proj.weight")),
      1e-14);
  EXPECT_FALSE(model.change(1, 1).input.has_value());
}

TEST(Adapter, LoraBiasIsScaledAndAdded) {
  TinyGpt2 base;
  TinyAdapter adapter;
  adapter.config["lora_bias"] = true;
  for (int layer : {0, 1}) {
    adapter.tensors.shapes[TinyAdapter::key(layer, "lora_B.bias")] = {36};
  }
  base.write();
  adapter.write();
  const AdaptedModel model(base.folder.path, Adapter(adapter.folder.path));
  const at::Tensor added = matrix(adapter.tensors, TinyAdapter::key(1, "lora_B.bias")) * 3;
  EXPECT_EQ(error_of(model.change(1, 1).v_bias.flatten(), added.narrow(0, 24, 12)), 0);
}

TEST(Adapter, AConfigurationAloneIsEnoughToCutHeads) {
  TinyGpt2 base;
  TinyAdapter adapter;
  base.write(/*weights=*/false);
  adapter.write();
  const AdaptedModel model(base.folder.path, Adapter(adapter.folder.path));
  EXPECT_FALSE(model.has_weights());
  EXPECT_EQ(model.touched().size(), 2U);
  EXPECT_EQ(model.change(1, 1).k.b.sizes(), at::IntArrayRef({3, 2, 4}));
  EXPECT_NE(model.notes().back().find("not at hand"), std::string::npos);
  try {
    model.load(0, 1);
    FAIL() << "weights that are not there were loaded";
  } catch (const Error& error) {
    expect(error, ErrorCode::NotFound, {"no weights"});
  }
}

TEST(Adapter, AnotherModelsAdapterIsRefusedWithLayerAndShape) {
  TinyGpt2 base;
  TinyAdapter adapter;
  adapter.tensors.shapes[TinyAdapter::key(1, "lora_A.weight")] = {2, 16};
  expect(refusal(adapter, &base), ErrorCode::InvalidShape,
         {"layer 1", "16 inputs", "36 outputs", "h.1.attn.c_attn", "12 and 36"});
  TinyAdapter deeper;
  deeper.tensors.shapes[TinyAdapter::key(7, "lora_A.weight")] = {2, 12};
  deeper.tensors.shapes[TinyAdapter::key(7, "lora_B.weight")] = {36, 2};
  expect(refusal(deeper, &base), ErrorCode::NotFound, {"h.7.attn.c_attn", "2 layers"});
}

TEST(Adapter, AQuantisedBaseIsRefused) {
  TinyGpt2 base;
  TinyAdapter adapter;
  base.config["quantization_config"] = {{"quant_method", "bitsandbytes"}};
  expect(refusal(adapter, &base), ErrorCode::Unsupported, {"bitsandbytes", "dequantize"});
}

TEST(Adapter, FilesThatAreNotWhatTheConfigurationSaysAreRefused) {
  TinyAdapter rank;
  rank.config["r"] = 4;
  expect(refusal(rank), ErrorCode::InvalidValue, {"rank 2", "says 4", "h.0.attn.c_attn"});
  TinyAdapter half;
  half.tensors.shapes.erase(TinyAdapter::key(1, "lora_B.weight"));
  expect(refusal(half), ErrorCode::NotFound, {"h.1.attn.c_attn", "no lora_B.weight"});
  TinyAdapter other_half;
  other_half.tensors.shapes.erase(TinyAdapter::key(1, "lora_A.weight"));
  expect(refusal(other_half), ErrorCode::NotFound, {"h.1.attn.c_attn", "no lora_A.weight"});
  TinyAdapter ranks;
  ranks.tensors.shapes[TinyAdapter::key(0, "lora_B.weight")] = {36, 3};
  expect(refusal(ranks), ErrorCode::InvalidShape, {"[2, 12]", "[36, 3]"});
  TinyAdapter empty;
  empty.tensors.shapes.clear();
  expect(refusal(empty), ErrorCode::InvalidFormat, {"empty adapter"});
  TinyAdapter dora;
  dora.config["use_dora"] = true;
  expect(refusal(dora), ErrorCode::InvalidFormat, {"no lora_magnitude_vector", "use_dora"});
  TinyAdapter bias;
  bias.tensors.shapes[TinyAdapter::key(0, "lora_B.bias")] = {36};
  expect(refusal(bias), ErrorCode::InvalidFormat, {"lora_B.bias", "lora_bias: false"});
  TinyAdapter magnitude;
  magnitude.config["use_dora"] = true;
  for (int layer : {0, 1}) {
    magnitude.tensors.shapes[TinyAdapter::key(layer, "lora_magnitude_vector")] = {12};
  }
  expect(refusal(magnitude), ErrorCode::InvalidShape, {"lora_magnitude_vector", "[12]", "[36]"});
}

TEST(Adapter, NotFiniteNumbersAreNamed) {
  TinyAdapter adapter;
  const std::string name = TinyAdapter::key(1, "lora_B.weight");
  std::vector<double> values(72, 1.0);
  values[5] = NAN;
  adapter.tensors.values[name] = values;
  expect(refusal(adapter), ErrorCode::NotFinite, {name, "[2, 1]"});
}

TEST(Adapter, MissingFilesAreNamed) {
  TinyAdapter adapter;
  adapter.write();
  std::filesystem::remove(adapter.folder.path / "adapter_model.safetensors");
  try {
    Adapter opened(adapter.folder.path);
    FAIL();
  } catch (const Error& error) {
    expect(error, ErrorCode::NotFound, {"adapter_model.safetensors"});
  }
  std::ofstream(adapter.folder.path / "adapter_model.bin") << "x";
  try {
    Adapter opened(adapter.folder.path);
    FAIL();
  } catch (const Error& error) {
    expect(error, ErrorCode::Unsupported, {"adapter_model.bin", "save_pretrained"});
  }
  EXPECT_THROW(resolve_adapter("no-such-folder"), Error);
}

}  // namespace
}  // namespace subspace
