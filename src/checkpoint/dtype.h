#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace subspace {

/// Element types a safetensors file may declare.
enum class DType {
  Bool, U8, I8, U16, I16, F16, BF16, U32, I32, F32, U64, I64, F64, F8_E4M3, F8_E5M2, F8_E8M0,
};

/// Bytes of one element.
std::int64_t dtype_size(DType dtype);
/// The name in a safetensors header ("BF16", "F8_E4M3", ...).
const char* dtype_name(DType dtype);
/// The type of that name, or nothing.
std::optional<DType> dtype_from_name(std::string_view name);

}  // namespace subspace
