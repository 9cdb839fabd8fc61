#include "checkpoint/format.h"

namespace subspace {

std::optional<kernels::Format> format_of(DType dtype) {
  switch (dtype) {
    case DType::F64:
      return kernels::Format::f64;
    case DType::F32:
      return kernels::Format::f32;
    case DType::F16:
      return kernels::Format::f16;
    case DType::BF16:
      return kernels::Format::bf16;
    case DType::F8_E4M3:
      return kernels::Format::f8_e4m3;
    case DType::F8_E8M0:
      return kernels::Format::f8_e8m0;
    default:
      return std::nullopt;
  }
}

}  // namespace subspace
