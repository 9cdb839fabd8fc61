// A .npy header, and behind a first byte of 'm' a meta.json, from any bytes: accepted, and then
// what it promises is true of the bytes, or refused with an Error.

#include <cstdint>
#include <span>
#include <string_view>

#include "base/error.h"
#include "data/dataset_meta.h"
#include "data/npy.h"

namespace {

void header(std::span<const std::byte> file) {
  const subspace::NpyHeader header = subspace::parse_npy_header(file, file.size(), "input");
  const std::uint64_t size = subspace::npy_type_size(header.type);
  if (header.data_begin % size != 0 || header.data_begin > file.size() ||
      header.elements != (file.size() - header.data_begin) / size ||
      header.shape.size() > subspace::kMaxNpyAxes) {
    __builtin_trap();
  }
  std::uint64_t product = 1;
  for (const std::int64_t axis : header.shape) {
    if (axis < 0) __builtin_trap();
    product *= static_cast<std::uint64_t>(axis);
  }
  if (product != header.elements) __builtin_trap();
}

void meta(std::string_view text) {
  const subspace::DatasetMeta meta = subspace::parse_dataset_meta(text, "input");
  if (!meta.splits.contains("train") || meta.id.size() != 64) __builtin_trap();
  for (const auto& [name, split] : meta.splits) {
    if (split.rows < 1 || split.arrays.size() < 2) __builtin_trap();
    for (const auto& [array, entry] : split.arrays) {
      if (entry.file.find('/') != std::string::npos || entry.file[0] == '.') __builtin_trap();
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    if (size > 0 && data[0] == 'm') {
      meta({reinterpret_cast<const char*>(data) + 1, size - 1});
    } else {
      header({reinterpret_cast<const std::byte*>(data), size});
    }
  } catch (const subspace::Error&) {
  }
  return 0;
}
