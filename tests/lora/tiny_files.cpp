#include "lora/tiny_files.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "base/atomic_file.h"
#include "checkpoint/safetensors.h"

namespace subspace::testing {

Scratch::Scratch() {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  std::random_device seed;
  path = std::filesystem::temp_directory_path() /
         fmt::format("subspace_{}_{}_{}", test->test_suite_name(), test->name(), seed());
  std::filesystem::create_directories(path);
}

Scratch::~Scratch() { remove_tree(path); }

void TinyTensors::write(const std::filesystem::path& file) const {
  std::mt19937_64 random(11);
  std::normal_distribution<double> normal;
  std::vector<SafetensorsWriter::Entry> entries;
  for (const auto& [name, shape] : shapes) entries.push_back({name, DType::F64, shape});
  SafetensorsWriter writer(file, entries);
  for (const auto& [name, shape] : shapes) {
    std::size_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
    std::vector<double>& numbers = values[name];
    if (numbers.size() != count) {
      numbers.resize(count);
      for (double& number : numbers) number = normal(random);
    }
    if (count > 0) writer.append(name, numbers.data(), count * sizeof(double));
  }
  writer.finish();
}

TinyGpt2::TinyGpt2() {
  config = {{"model_type", "gpt2"}, {"n_embd", kWidth}, {"n_layer", 2}, {"n_head", kHeads}};
  for (int layer = 0; layer < 2; ++layer) {
    const std::string block = fmt::format("h.{}.", layer);
    tensors.shapes[block + "attn.c_attn.weight"] = {kWidth, 3 * kWidth};
    tensors.shapes[block + "attn.c_attn.bias"] = {3 * kWidth};
    tensors.shapes[block + "attn.c_proj.weight"] = {kWidth, kWidth};
    tensors.shapes[block + "attn.c_proj.bias"] = {kWidth};
    tensors.shapes[block + "ln_1.weight"] = {kWidth};
    tensors.shapes[block + "ln_1.bias"] = {kWidth};
  }
}

void TinyGpt2::write(bool weights) const {
  std::ofstream(folder.path / "config.json") << config.dump();
  if (weights) tensors.write(folder.path / "model.safetensors");
}

std::string TinyAdapter::key(std::int64_t layer, const std::string& rest) {
  return fmt::format("base_model.model.transformer.h.{}.attn.c_attn.{}", layer, rest);
}

TinyAdapter::TinyAdapter() {
  config = {
      {"peft_type", "LORA"},          {"r", kRank},    {"lora_alpha", 6}, {"fan_in_fan_out", true},
      {"target_modules", {"c_attn"}}, {"bias", "none"}};
  for (int layer = 0; layer < 2; ++layer) {
    tensors.shapes[key(layer, "lora_A.weight")] = {kRank, TinyGpt2::kWidth};
    tensors.shapes[key(layer, "lora_B.weight")] = {3 * TinyGpt2::kWidth, kRank};
  }
}

void TinyAdapter::write() const {
  std::ofstream(folder.path / "adapter_config.json") << config.dump();
  tensors.write(folder.path / "adapter_model.safetensors");
}

}  // namespace subspace::testing
