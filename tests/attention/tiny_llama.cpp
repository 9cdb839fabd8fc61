#include "attention/tiny_llama.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "base/atomic_file.h"
#include "checkpoint/safetensors.h"

namespace subspace::testing {

TinyLlama::TinyLlama() {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  std::random_device seed;
  folder = std::filesystem::temp_directory_path() /
           fmt::format("subspace_{}_{}_{}", test->test_suite_name(), test->name(), seed());
  std::filesystem::create_directories(folder);
  config = {
      {"model_type", "llama"},         {"hidden_size", kWidth},          {"num_hidden_layers", 2},
      {"num_attention_heads", kHeads}, {"num_key_value_heads", kGroups}, {"head_dim", kHeadDim},
      {"rms_norm_eps", 1e-6}};
  for (int layer = 0; layer < 2; ++layer) {
    const std::string base = fmt::format("model.layers.{}.", layer);
    shapes[base + "input_layernorm.weight"] = {kWidth};
    shapes[base + "self_attn.q_proj.weight"] = {kHeads * kHeadDim, kWidth};
    shapes[base + "self_attn.k_proj.weight"] = {kGroups * kHeadDim, kWidth};
    shapes[base + "self_attn.v_proj.weight"] = {kGroups * kHeadDim, kWidth};
    shapes[base + "self_attn.o_proj.weight"] = {kWidth, kHeads * kHeadDim};
  }
}

TinyLlama::~TinyLlama() { remove_tree(folder); }

void TinyLlama::write() const {
  std::ofstream(folder / "config.json") << config.dump();
  std::mt19937_64 random(7);
  std::normal_distribution<double> normal;
  std::vector<SafetensorsWriter::Entry> entries;
  for (const auto& [name, shape] : shapes) entries.push_back({name, DType::F64, shape});
  SafetensorsWriter writer(folder / "model.safetensors", entries);
  for (const auto& [name, shape] : shapes) {
    std::size_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
    std::vector<double>& values = values_[name];
    values.resize(count);
    for (double& value : values) value = normal(random);
    writer.append(name, values.data(), count * sizeof(double));
  }
  writer.finish();
}

}  // namespace subspace::testing
