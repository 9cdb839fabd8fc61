#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace subspace {

/// Element types a safetensors file may declare: all of format version 0.6, so that a file whose
/// experts are in four bits still opens for its attention tensors.
enum class DType {
  Bool,
  U8,
  I8,
  U16,
  I16,
  F16,
  BF16,
  U32,
  I32,
  F32,
  U64,
  I64,
  F64,
  F8_E4M3,
  F8_E5M2,
  F8_E8M0,
  F4,
  F6_E2M3,
  F6_E3M2,
  F8_E4M3FNUZ,
  F8_E5M2FNUZ,
  C64,
};

/// Bits of one element. Elements below a byte are packed; their tensors fill whole bytes.
std::int64_t dtype_bits(DType dtype);
/// Bytes of one element. Throws Unsupported for a type below a byte (use dtype_bits).
std::int64_t dtype_size(DType dtype);
/// The name in a safetensors header ("BF16", "F8_E4M3", ...).
const char* dtype_name(DType dtype);
/// The type of that name, or nothing.
std::optional<DType> dtype_from_name(std::string_view name);
/// "BOOL, U8, I8, ...", for messages.
std::string dtype_names();

}  // namespace subspace
