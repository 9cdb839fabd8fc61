#include "lora/adapter_config.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"

namespace subspace {
namespace {

Json minimal() { return {{"peft_type", "LORA"}, {"r", 8}, {"lora_alpha", 16}}; }

AdapterConfig parse(const Json& json, const AdapterOptions& options = {}) {
  return parse_adapter_config(json, "adapter_config.json", options);
}

Error refusal(const Json& json, const AdapterOptions& options = {}) {
  try {
    parse(json, options);
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorCode::Internal, "nothing was refused");
}

void expect_refused(const Json& json, ErrorCode code, const std::string& word,
                    const AdapterOptions& options = {}) {
  const Error error = refusal(json, options);
  EXPECT_EQ(error.code(), code) << error.what();
  EXPECT_NE(std::string(error.what()).find(word), std::string::npos)
      << "no '" << word << "' in: " << error.what();
}

TEST(AdapterConfig, ScaleIsAlphaOverRankOrOverItsRoot) {
  Json json = minimal();
  EXPECT_EQ(parse(json).scale_of("q_proj", 8), 2.0);
  json["use_rslora"] = true;
  EXPECT_EQ(parse(json).scale_of("q_proj", 8), 16 / std::sqrt(8.0));
  json["use_rslora"] = false;
  json["lora_alpha"] = 12.5;
  EXPECT_EQ(parse(json).scale_of("q_proj", 8), 12.5 / 8);
}

TEST(AdapterConfig, PatternsTakeTheFirstKeyThatMatchesRankAndAlphaApart) {
  Json json = minimal();
  json["rank_pattern"] = {{"layers\\.1\\..*", 4}, {"q_proj", 2}, {"self_attn.k_proj", 3}};
  json["alpha_pattern"] = {{"q_proj", 100}};
  const AdapterConfig config = parse(json);
  EXPECT_EQ(config.rank_of("model.layers.1.self_attn.q_proj"), 4);
  EXPECT_EQ(config.rank_of("model.layers.0.self_attn.q_proj"), 2);
  EXPECT_EQ(config.rank_of("model.layers.0.self_attn.k_proj"), 3);
  EXPECT_EQ(config.rank_of("model.layers.0.self_attn.v_proj"), 8);
  EXPECT_EQ(config.alpha_of("model.layers.1.self_attn.q_proj"), 100);
  EXPECT_EQ(config.alpha_of("model.layers.1.self_attn.k_proj"), 16);
  EXPECT_EQ(config.scale_of("model.layers.1.self_attn.q_proj", 4), 25);
  // A key stands for the whole path, or for what is behind a dot, as PEFT has it.
  EXPECT_EQ(config.rank_of("xq_proj"), 8);
  EXPECT_EQ(config.rank_of("q_proj"), 2);
  EXPECT_EQ(config.rank_of("q_proj.base"), 8);
}

TEST(AdapterConfig, AnAnchoredKeyMatchesWholePathsOnly) {
  Json json = minimal();
  json["rank_pattern"] = {{"^layers.0.q_proj", 4}};
  const AdapterConfig config = parse(json);
  EXPECT_EQ(config.rank_of("layers.0.q_proj"), 4);
  EXPECT_EQ(config.rank_of("model.layers.0.q_proj"), 8);
}

TEST(AdapterConfig, WhatIsNotAFixedUpdateIsRefusedWithTheReason) {
  const std::pair<const char*, Json> cases[] = {
      {"alora_invocation_tokens", {1, 2}}, {"use_qalora", true},
      {"use_bdlora", {{"nblocks", 2}}},    {"arrow_config", {{"top_k", 3}}},
      {"monteclora_config", {{"n", 1}}},   {"velora_config", {{"n", 1}}},
      {"kasa_config", {{"beta", 1}}},      {"layer_replication", {{0, 2}, {1, 3}}}};
  for (const auto& [field, value] : cases) {
    Json json = minimal();
    json[field] = value;
    expect_refused(json, ErrorCode::Unsupported, field);
    json[field] = nullptr;
    EXPECT_NO_THROW(parse(json)) << field;
  }
  Json json = minimal();
  json["target_parameters"] = {"mlp.experts.gate_up_proj"};
  EXPECT_EQ(parse(json).notes.size(), 1U);
  json["target_parameters"] = {"self_attn.q_proj.weight"};
  expect_refused(json, ErrorCode::Unsupported, "self_attn.q_proj.weight");
}

TEST(AdapterConfig, InitialisationsThatChangeTheBaseNeedTheResidual) {
  for (const char* kind : {"pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"}) {
    Json json = minimal();
    json["init_lora_weights"] = kind;
    expect_refused(json, ErrorCode::Unsupported, "--base-is-residual");
    EXPECT_EQ(parse(json, {.base_is_residual = true}).initialisation, kind);
  }
  for (const Json& harmless : {Json(true), Json(false), Json("gaussian"), Json("eva"), Json()}) {
    Json json = minimal();
    json["init_lora_weights"] = harmless;
    EXPECT_NO_THROW(parse(json)) << harmless;
  }
}

TEST(AdapterConfig, UnknownFieldsAreNotedOrWithStrictRefused) {
  Json json = minimal();
  json["qalora_group_size"] = 16;
  json["megatron_core"] = "megatron.core";
  json["something_empty"] = Json::object();
  json["something_false"] = false;
  EXPECT_TRUE(parse(json, {.strict = true}).notes.empty());
  json["something_new"] = 3;
  EXPECT_NE(parse(json).notes.at(0).find("something_new"), std::string::npos);
  expect_refused(json, ErrorCode::Unsupported, "something_new", {.strict = true});
}

TEST(AdapterConfig, WrongFieldsAreNamed) {
  Json json = minimal();
  json["peft_type"] = "IA3";
  expect_refused(json, ErrorCode::Unsupported, "IA3");
  json = minimal();
  json["r"] = 0;
  expect_refused(json, ErrorCode::InvalidValue, "'r'");
  json.erase("r");
  expect_refused(json, ErrorCode::NotFound, "'r'");
  json = minimal();
  json["bias"] = "some";
  expect_refused(json, ErrorCode::InvalidValue, "lora_only");
  json = minimal();
  json["rank_pattern"] = {{"q_proj", "4"}};
  expect_refused(json, ErrorCode::InvalidValue, "q_proj");
  json["rank_pattern"] = {{"q_(proj", 4}};
  expect_refused(json, ErrorCode::InvalidFormat, "q_(proj");
  json = minimal();
  json["use_dora"] = json["lora_bias"] = true;
  expect_refused(json, ErrorCode::Unsupported, "use_dora");
}

TEST(AdapterKeys, FilesAndDumpsOfMemoryAreRead) {
  using Part = AdapterKey::Part;
  const std::string module = "base_model.model.encoder.layer.0.attention.self.query.";
  auto read = [&](const std::string& rest) { return parse_adapter_key(module + rest, "file"); };
  const std::pair<const char*, Part> parts[] = {
      {"lora_A.weight", Part::a},
      {"lora_A.default.weight", Part::a},
      {"lora_B.weight", Part::b},
      {"lora_B.default.weight", Part::b},
      {"lora_B.bias", Part::b_bias},
      {"lora_B.default.bias", Part::b_bias},
      {"lora_magnitude_vector", Part::magnitude},
      {"lora_magnitude_vector.weight", Part::magnitude},
      {"lora_magnitude_vector.default", Part::magnitude},
      {"lora_magnitude_vector.default.weight", Part::magnitude},
      {"lora_embedding_A", Part::embedding},
      {"lora_embedding_B.default", Part::embedding},
      {"base_layer.bias", Part::whole}};
  for (const auto& [rest, part] : parts) {
    const AdapterKey key = read(rest);
    EXPECT_EQ(key.part, part) << rest;
    EXPECT_EQ(key.path, "encoder.layer.0.attention.self.query") << rest;
    EXPECT_EQ(key.adapter, std::string(rest).find("default") == std::string::npos ? "" : "default");
  }
  EXPECT_EQ(read("base_layer.bias").leaf, "bias");
  const AdapterKey saved =
      parse_adapter_key("base_model.model.score.modules_to_save.default.weight", "file");
  EXPECT_EQ(saved.path, "score");
  EXPECT_EQ(saved.leaf, "weight");
  EXPECT_EQ(parse_adapter_key("base_model.model.score.original_module.weight", "file").part,
            Part::ignored);
  for (const char* unknown : {"lora_A.a.b.weight", "lora_C.weight", "lora_A", "lora_B.scale"}) {
    EXPECT_THROW(read(unknown), Error) << unknown;
  }
}

TEST(AdapterKeys, PathsInMemoryAndNamesInFilesAreOneSpelling) {
  const std::pair<const char*, const char*> same[] = {
      {"transformer.h.0.attn.c_attn", "h.0.attn.c_attn"},
      {"bert.encoder.layer.3.attention.self.query", "encoder.layer.3.attention.self.query"},
      {"model.language_model.layers.1.self_attn.q_proj",
       "language_model.model.layers.1.self_attn.q_proj"},
      {"vit.layers.2.attention.o_proj", "vit.encoder.layer.2.attention.output.dense"},
      {"layers.2.attention.q_proj", "encoder.layer.2.attention.attention.query"},
      {"model.layers.1.self_attn.q_a_proj", "layers.1.attn.wq_a"},
      {"model.layers.1.self_attn.o_b_proj", "layers.1.attn.wo_b"}};
  for (const auto& [path, name] : same) {
    EXPECT_EQ(canonical_path(path), canonical_path(name)) << path;
  }
  EXPECT_NE(canonical_path("model.vision_tower.encoder.layers.0.self_attn.q_proj"),
            canonical_path("model.language_model.layers.0.self_attn.q_proj"));
  EXPECT_EQ(layer_in_path(canonical_path("bert.encoder.layer.3.attention.self.query")), 3);
  EXPECT_EQ(layer_in_path(canonical_path("transformer.h.11.attn.c_attn")), 11);
  EXPECT_EQ(layer_in_path("score"), -1);
}

}  // namespace
}  // namespace subspace
