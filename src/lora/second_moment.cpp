#include <ATen/ATen.h>

#include <cstring>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "lora/heads_run.h"
#include "spectrum/eigenvalues.h"

namespace subspace {

at::Tensor second_moment_factor(const std::filesystem::path& path, std::int64_t layer,
                                std::int64_t width) {
  const SafetensorsFile file(path);
  const std::string name = fmt::format("layers.{}.second_moment", layer);
  const TensorInfo& info = file.info(name);
  const std::string where = fmt::format("{}: tensor '{}'", path.string(), name);
  if (info.shape != std::vector<std::int64_t>{width, width}) {
    fail(ErrorCode::InvalidShape, "{} has {} axes and {} numbers; expected [{}, {}]", where,
         info.shape.size(), info.elements(), width, width);
  }
  if (info.dtype != DType::F32 && info.dtype != DType::F64) {
    fail(ErrorCode::Unsupported, "{} is {}; expected F32 or F64", where, dtype_name(info.dtype));
  }
  at::Tensor s = at::empty(info.shape, info.dtype == DType::F32 ? at::kFloat : at::kDouble);
  file.read(info, 0, s.data_ptr(), s.nbytes());
  s = s.to(at::kDouble);
  if (!at::isfinite(s).all().item<bool>()) {
    fail(ErrorCode::NotFinite, "{} holds NaN or Inf", where);
  }
  const double most = s.abs().max().item<double>();
  if (!((s - s.t()).abs().max().item<double>() <= 1e-4 * most)) {
    fail(ErrorCode::InvalidValue, "{} is not symmetric; expected the mean of x^T x", where);
  }
  return moment_factor((s + s.t()) / 2);
}

at::Tensor moment_factor(const at::Tensor& s) { return psd_factor(s).t().contiguous(); }

}  // namespace subspace
