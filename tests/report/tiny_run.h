#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/random.h"

namespace subspace::testing {

/// A folder that is removed with everything in it.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// A result with two layers: Q heads [3, 4], an O stack of 6 values, and offsets 0..offsets-1.
/// Change `summary` or `tensors` before write() to make it wrong.
struct TinyRun {
  struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;
    std::vector<double> values;
  };
  Json summary;
  std::vector<Tensor> tensors;

  explicit TinyRun(int offsets = 0, std::uint64_t seed = 1);
  void write(const std::filesystem::path& folder) const;
  Json& map(int layer, const std::string& name) { return summary["layers"][layer]["maps"][name]; }
  Tensor& tensor(const std::string& name);

 private:
  void add_layer(int layer, int offsets);
  Json add_heads(const std::string& tensor, std::int64_t heads, std::int64_t n);

  Random random_;
};

/// Undoes base64(gzip(bytes)); throws unless it is one whole gzip member below 1 MiB.
std::vector<std::uint8_t> unpack_chunk(const std::string& text);

}  // namespace subspace::testing
