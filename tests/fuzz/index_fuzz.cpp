// A shard index from any bytes: accepted, and then every shard is a plain file name, or refused
// with an Error.

#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "checkpoint/shard_index.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto index =
        subspace::parse_shard_index({reinterpret_cast<const char*>(data), size}, "input");
    if (index.weight_map.empty()) __builtin_trap();
    for (const auto& [name, file] : index.weight_map) {
      if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos) {
        __builtin_trap();
      }
    }
  } catch (const subspace::Error&) {
  }
  return 0;
}
