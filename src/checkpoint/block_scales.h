#pragma once

#include <cstdint>
#include <string>

#include "base/json.h"
#include "checkpoint/safetensors.h"

namespace subspace {

/// Rows and columns of the blocks that share a scale.
struct BlockSize {
  std::int64_t rows = 128;
  std::int64_t cols = 128;
};

/// `quantization_config.weight_block_size` of a configuration (or of its `text_config`), 128 x 128
/// where it does not say. Throws InvalidValue unless it is two whole numbers from 1 to 65536, or
/// InvalidFormat if quantization_config is no object.
BlockSize weight_block_size(const Json& config, const std::string& where);

/// Rows and columns of a tensor seen as a matrix: [n] is [1, n], [] is [1, 1], [a, b, c] is [a,
/// bc].
struct MatrixShape {
  std::int64_t rows = 1;
  std::int64_t cols = 1;
};
MatrixShape matrix_shape(const TensorInfo& tensor);

}  // namespace subspace
