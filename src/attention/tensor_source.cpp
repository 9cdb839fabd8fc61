#include "attention/tensor_source.h"

#include <ATen/ATen.h>

#include "attention/decode_on_device.h"
#include "base/error.h"

namespace subspace {

at::Tensor LoadingSource::get(const std::string& name, const std::vector<std::int64_t>& shape) {
  const auto& found = checkpoint_.info(name).shape;
  if (found != shape) {
    fail(ErrorCode::InvalidShape,
         "{}: tensor '{}' has shape {}; expected {} from config.json; the two belong to different "
         "models",
         checkpoint_.shard_of(name), name, shape_text(found), shape_text(shape));
  }
  if (!device_.is_cpu()) {
    return decode_on_device(checkpoint_, name, threads_, allow_nonfinite_, device_).view(shape);
  }
  at::Tensor out = at::empty(shape, at::kDouble);
  checkpoint_.decode(name, out.data_ptr<double>(), threads_, allow_nonfinite_);
  return out;
}

at::Tensor ListingSource::get(const std::string& name, const std::vector<std::int64_t>& shape) {
  needed_.push_back({name, shape});
  return at::empty(shape, at::TensorOptions().dtype(at::kDouble).device(at::kMeta));
}

at::Tensor into_heads(const at::Tensor& weight, std::int64_t heads) {
  return weight.view({heads, weight.size(0) / heads, weight.size(1)}).transpose(1, 2);
}

at::Tensor out_of_heads(const at::Tensor& weight, std::int64_t heads) {
  return weight.t().view({heads, weight.size(1) / heads, weight.size(0)});
}

at::Tensor bias_of_heads(const at::Tensor& bias, std::int64_t heads) {
  return bias.defined() ? bias.view({heads, bias.size(0) / heads}) : bias;
}

}  // namespace subspace
