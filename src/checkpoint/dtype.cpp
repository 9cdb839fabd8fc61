#include "checkpoint/dtype.h"

#include <array>

#include "base/error.h"

namespace subspace {
namespace {

struct Row {
  DType dtype;
  const char* name;
  int bits;
};

constexpr std::array kRows = {
    Row{DType::Bool, "BOOL", 8},
    Row{DType::U8, "U8", 8},
    Row{DType::I8, "I8", 8},
    Row{DType::U16, "U16", 16},
    Row{DType::I16, "I16", 16},
    Row{DType::F16, "F16", 16},
    Row{DType::BF16, "BF16", 16},
    Row{DType::U32, "U32", 32},
    Row{DType::I32, "I32", 32},
    Row{DType::F32, "F32", 32},
    Row{DType::U64, "U64", 64},
    Row{DType::I64, "I64", 64},
    Row{DType::F64, "F64", 64},
    Row{DType::F8_E4M3, "F8_E4M3", 8},
    Row{DType::F8_E5M2, "F8_E5M2", 8},
    Row{DType::F8_E8M0, "F8_E8M0", 8},
    Row{DType::F4, "F4", 4},
    Row{DType::F6_E2M3, "F6_E2M3", 6},
    Row{DType::F6_E3M2, "F6_E3M2", 6},
    Row{DType::F8_E4M3FNUZ, "F8_E4M3FNUZ", 8},
    Row{DType::F8_E5M2FNUZ, "F8_E5M2FNUZ", 8},
    Row{DType::C64, "C64", 64},
};

constexpr bool in_enum_order() {
  for (std::size_t i = 0; i < kRows.size(); ++i) {
    if (static_cast<std::size_t>(kRows[i].dtype) != i) return false;
  }
  return true;
}
static_assert(in_enum_order(), "row(dtype) indexes the table by the enumerator");

const Row& row(DType dtype) { return kRows.at(static_cast<std::size_t>(dtype)); }

}  // namespace

std::int64_t dtype_bits(DType dtype) { return row(dtype).bits; }

std::int64_t dtype_size(DType dtype) {
  const Row& entry = row(dtype);
  if (entry.bits % 8 != 0) {
    fail(ErrorCode::Unsupported, "{} has {} bits an element, which is no whole number of bytes",
         entry.name, entry.bits);
  }
  return entry.bits / 8;
}

const char* dtype_name(DType dtype) { return row(dtype).name; }

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const Row& entry : kRows) {
    if (name == entry.name) return entry.dtype;
  }
  return std::nullopt;
}

std::string dtype_names() {
  std::string list;
  for (const Row& entry : kRows) {
    if (!list.empty()) list += ", ";
    list += entry.name;
  }
  return list;
}

}  // namespace subspace
