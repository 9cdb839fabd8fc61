// A configuration from any bytes: every accessor answers or refuses with an Error, at the top and
// one level down.

#include <cstdint>
#include <string_view>

#include "base/json.h"
#include "checkpoint/block_scales.h"
#include "tolerate.h"

namespace {

using namespace subspace;

void ask_everything(const Fields& fields, int depth) {
  for (const auto& [key, value] : fields.json().items()) {
    const std::string& name = key;
    if (fields.has(name) == value.is_null()) __builtin_trap();
    tolerate([&] {
      if (fields.positive_int_or(name, 1) < 1) __builtin_trap();
    });
    tolerate([&] {
      const auto number = fields.int_in(name, -5, 5);
      if (number < -5 || number > 5) __builtin_trap();
    });
    tolerate([&] {
      const double number = fields.number_or(name, 1);
      if (!(number - number == 0)) __builtin_trap();
    });
    tolerate([&] { (void)fields.boolean_or(name, true); });
    tolerate([&] { (void)fields.string_or(name, ""); });
    tolerate([&] { (void)fields.strings(name); });
    tolerate([&] {
      if (const auto inner = fields.object_if(name); inner && depth > 0) {
        ask_everything(*inner, depth - 1);
      }
    });
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  tolerate([&] {
    const Json json = parse_json({reinterpret_cast<const char*>(data), size}, "input", {65536, 32});
    tolerate([&] {
      const BlockSize block = weight_block_size(json, "input");
      if (block.rows < 1 || block.cols < 1) __builtin_trap();
    });
    ask_everything(Fields(json, "input"), 1);
  });
  return 0;
}
