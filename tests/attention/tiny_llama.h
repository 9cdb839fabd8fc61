#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"

namespace subspace::testing {

/// A Llama of two layers on disk, all widths different, every number random. What a test wants
/// wrong it changes before write().
struct TinyLlama {
  static constexpr std::int64_t kWidth = 14, kHeads = 6, kGroups = 2, kHeadDim = 4;

  TinyLlama();
  ~TinyLlama();
  TinyLlama(const TinyLlama&) = delete;
  TinyLlama& operator=(const TinyLlama&) = delete;

  void write() const;
  /// The numbers of a tensor as they stand in the file.
  const std::vector<double>& values(const std::string& name) const { return values_.at(name); }

  std::filesystem::path folder;
  Json config;
  std::map<std::string, std::vector<std::int64_t>> shapes;

 private:
  mutable std::map<std::string, std::vector<double>> values_;
};

}  // namespace subspace::testing
