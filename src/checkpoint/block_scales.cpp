#include "checkpoint/block_scales.h"

#include <cmath>

#include "base/error.h"
#include "checkpoint/checkpoint.h"

namespace subspace {
namespace {

constexpr std::int64_t kMaxBlock = 65536;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

bool is_block_extent(const Json& value) {
  return value.is_number_unsigned() && value.get<std::uint64_t>() >= 1 &&
         value.get<std::uint64_t>() <= kMaxBlock;
}

}  // namespace

BlockSize weight_block_size(const Json& config, const std::string& where) {
  const Fields fields(config, where);
  auto quantization = fields.object_if("quantization_config");
  if (!quantization && fields.has("text_config") && config.at("text_config").is_object()) {
    quantization = fields.object("text_config").object_if("quantization_config");
  }
  if (!quantization || !quantization->has("weight_block_size")) return {};
  const Json& size = quantization->json().at("weight_block_size");
  if (!size.is_array() || size.size() != 2 || !is_block_extent(size[0]) ||
      !is_block_extent(size[1])) {
    fail(ErrorCode::InvalidValue,
         "{}: weight_block_size is {}; expected two whole numbers from 1 to {}, as in [128, 128]",
         quantization->where(), size.dump().substr(0, 80), kMaxBlock);
  }
  return {size[0].get<std::int64_t>(), size[1].get<std::int64_t>()};
}

MatrixShape matrix_shape(const TensorInfo& tensor) {
  if (tensor.shape.empty()) return {};
  if (tensor.shape.size() == 1) return {1, tensor.shape[0]};
  MatrixShape matrix = {tensor.shape[0], 1};
  for (std::size_t axis = 1; axis < tensor.shape.size(); ++axis) matrix.cols *= tensor.shape[axis];
  return matrix;
}

std::string Checkpoint::scale_name(const std::string& name) const {
  for (const char* suffix : {"_scale_inv", "_scale"}) {
    if (has(name + suffix)) return name + suffix;
  }
  constexpr std::string_view kSuffix = ".weight";
  if (name.ends_with(kSuffix)) {
    const std::string stem = name.substr(0, name.size() - kSuffix.size());
    if (has(stem + ".scale")) return stem + ".scale";
  }
  return {};
}

std::vector<float> Checkpoint::block_scales(const std::string& name, bool allow_nonfinite) const {
  const TensorInfo& weight = info(name);
  // A tensor of another type may well stand beside something called scale.
  if (weight.dtype != DType::F8_E4M3) return {};
  const std::string scale = scale_name(name);
  if (scale.empty()) return {};
  const auto [rows, cols] = matrix_shape(weight);
  const TensorInfo& tensor = info(scale);
  const std::int64_t block_rows = divide_up(rows, block_.rows);
  const std::int64_t block_cols = divide_up(cols, block_.cols);
  // One scale for the tensor is [] or [1]. A [1, 1] where more blocks are due is a table that was
  // cut short, as by a writer that rounded the number of blocks down.
  const bool whole = tensor.shape.size() <= 1 && tensor.elements() == 1;
  if (!whole && tensor.shape != std::vector{block_rows, block_cols}) {
    fail(ErrorCode::InvalidShape,
         "{}: tensor '{}' has shape {}; expected [{}, {}], one scale a block of {}x{} of '{}' {}",
         shard_of(scale), scale, shape_text(tensor.shape), block_rows, block_cols, block_.rows,
         block_.cols, name, shape_text(weight.shape));
  }
  if (tensor.dtype == DType::F8_E4M3) {
    fail(
        ErrorCode::Unsupported,
        "{}: tensor '{}' holds scales of '{}', but is F8_E4M3, which needs scales itself; expected "
        "F32, BF16, F16 or F8_E8M0",
        shard_of(scale), scale, name);
  }
  std::vector<double> wide(static_cast<std::size_t>(tensor.elements()));
  decode(scale, wide.data(), 1, allow_nonfinite);
  std::vector<float> scales(wide.size());
  for (std::size_t i = 0; i < wide.size(); ++i) {
    scales[i] = static_cast<float>(wide[i]);
    const bool marked = allow_nonfinite && !std::isfinite(wide[i]);
    if (!(scales[i] >= 0 && std::isfinite(scales[i])) && !marked) {
      const auto stride = static_cast<std::size_t>(matrix_shape(tensor).cols);
      fail(ErrorCode::InvalidValue,
           "{}: tensor '{}' has the scale {} at [{}, {}]; expected a number from 0 to 3.4e38",
           shard_of(scale), scale, wide[i], i / stride, i % stride);
    }
  }
  if (whole) scales.assign(static_cast<std::size_t>(block_rows * block_cols), scales[0]);
  return scales;
}

}  // namespace subspace
