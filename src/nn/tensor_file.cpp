#include <ATen/ATen.h>

#include "base/error.h"
#include "nn/parameters.h"

namespace subspace::nn {
namespace {

at::ScalarType scalar_type(DType dtype, const std::string& where) {
  switch (dtype) {
    case DType::F64:
      return at::kDouble;
    case DType::F32:
      return at::kFloat;
    case DType::BF16:
      return at::kBFloat16;
    case DType::F16:
      return at::kHalf;
    case DType::I64:
      return at::kLong;
    case DType::I32:
      return at::kInt;
    case DType::I16:
      return at::kShort;
    case DType::U8:
      return at::kByte;
    case DType::Bool:
      return at::kBool;
    default:
      fail(ErrorCode::Unsupported,
           "{}: element type {}; expected F64, F32, BF16, F16, I64, I32, "
           "I16, U8 or BOOL",
           where, dtype_name(dtype));
  }
}

}  // namespace

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return DType::F64;
    case at::kFloat:
      return DType::F32;
    case at::kBFloat16:
      return DType::BF16;
    case at::kHalf:
      return DType::F16;
    case at::kLong:
      return DType::I64;
    case at::kInt:
      return DType::I32;
    case at::kShort:
      return DType::I16;
    case at::kByte:
      return DType::U8;
    case at::kBool:
      return DType::Bool;
    default:
      fail(ErrorCode::Unsupported, "a tensor of {} cannot be written",
           c10::toString(tensor.scalar_type()));
  }
}

void write_tensors(const std::filesystem::path& file,
                   const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const auto& [name, tensor] : tensors) {
    entries.push_back({name, dtype_of(tensor), tensor.sizes().vec()});
  }
  SafetensorsWriter writer(file, entries, {{"format", "pt"}});
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor held = tensor.detach().to(at::kCPU).contiguous();
    if (held.numel() > 0) writer.append(name, held.data_ptr(), held.nbytes());
  }
  writer.finish();
}

at::Tensor read_tensor(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& info = file.info(name);
  const std::string where = file.path().string() + ": tensor '" + name + "'";
  at::Tensor out = at::empty(info.shape, scalar_type(info.dtype, where));
  if (info.bytes() > 0) file.read(info, 0, out.data_ptr(), info.bytes());
  return out;
}

}  // namespace subspace::nn
