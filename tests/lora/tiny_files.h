#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"

namespace subspace::testing {

/// A folder of its own for one test, removed at its end.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::filesystem::path path;
};

/// Float64 tensors of given shapes with random numbers, as a safetensors file.
struct TinyTensors {
  std::map<std::string, std::vector<std::int64_t>> shapes;
  mutable std::map<std::string, std::vector<double>> values;  ///< those given are kept
  void write(const std::filesystem::path& file) const;
};

/// A GPT-2 of two layers (Conv1D, one c_attn for q, k and v), width 12, 3 heads of 4.
struct TinyGpt2 {
  static constexpr std::int64_t kWidth = 12, kHeads = 3, kHeadDim = 4;
  TinyGpt2();
  void write(bool weights = true) const;
  Scratch folder;
  Json config;
  TinyTensors tensors;
};

/// A LoRA adapter of rank 2 on both c_attn, alpha 6, as PEFT writes it.
struct TinyAdapter {
  static constexpr std::int64_t kRank = 2;
  TinyAdapter();
  void write() const;
  static std::string key(std::int64_t layer, const std::string& rest);
  Scratch folder;
  Json config;
  TinyTensors tensors;
};

}  // namespace subspace::testing
