// A safetensors header from any bytes: accepted whole or refused with an Error, never anything
// else.

#include <cstdint>
#include <span>

#include "base/error.h"
#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto header =
        subspace::parse_safetensors_header(std::as_bytes(std::span(data, size)), size, "input");
    for (const auto& [name, tensor] : header.tensors) {
      // What was accepted must lie inside the file and be as large as its shape says.
      if (tensor.begin > tensor.end || tensor.end > size) __builtin_trap();
      if (tensor.elements() < 0) __builtin_trap();
    }
  } catch (const subspace::Error&) {
  }
  return 0;
}
