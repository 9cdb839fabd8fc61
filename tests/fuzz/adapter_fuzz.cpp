// adapter_config.json from any bytes, and keys and paths from its strings: read or refused with an
// Error, and every answer within its promise.

#include <cmath>
#include <cstdint>
#include <string_view>

#include "base/json.h"
#include "lora/adapter_config.h"
#include "tolerate.h"

namespace {

using namespace subspace;

void ask(const AdapterConfig& config, const std::string& path) {
  const std::int64_t rank = config.rank_of(path);
  if (rank < 1) __builtin_trap();
  if (std::isnan(config.scale_of(path, rank))) __builtin_trap();
  const std::string canonical = canonical_path(path);
  if (layer_in_path(canonical) < -1) __builtin_trap();
  tolerate([&] { (void)parse_adapter_key(path, "input"); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  tolerate([&] {
    const Json json = parse_json({reinterpret_cast<const char*>(data), size}, "input", {65536, 32});
    for (const bool yes : {false, true}) {
      tolerate([&] {
        const AdapterConfig config = parse_adapter_config(json, "input", {yes, yes});
        ask(config, "model.layers.1.self_attn.q_proj");
        for (const std::string& name : config.target_modules) ask(config, name.substr(0, 256));
      });
    }
  });
  return 0;
}
