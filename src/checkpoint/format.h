#pragma once

#include <optional>

#include "checkpoint/dtype.h"
#include "kernels/dequantize.h"

namespace subspace {

/// How the kernels read an element type; nothing for those that hold no weights they can decode.
std::optional<kernels::Format> format_of(DType dtype);

}  // namespace subspace
