// JSON text as config.json or an index would have it: parsed within limits or refused with an
// Error.

#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "base/json.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace subspace;
  try {
    const Json json = parse_json({reinterpret_cast<const char*>(data), size}, "input", {65536, 32});
    const Fields fields(json, "input");
    for (const auto& [name, value] : json.items()) {
      try {
        (void)fields.positive_int_or(name, 1);
      } catch (const Error&) {
      }
      try {
        (void)fields.number_or(name, 1);
      } catch (const Error&) {
      }
      try {
        (void)fields.strings(name);
      } catch (const Error&) {
      }
      try {
        (void)fields.object_if(name);
      } catch (const Error&) {
      }
    }
  } catch (const Error&) {
  }
  return 0;
}
