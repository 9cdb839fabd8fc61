#include "train/device_info.h"

#ifdef SUBSPACE_CUDA
#include <cuda_runtime_api.h>
#endif

namespace subspace::train {

c10::ScalarType chosen_dtype(const Settings& settings, c10::Device device) {
  const bool narrow =
      settings.precision == "bfloat16" || (settings.precision == "auto" && !device.is_cpu());
  return narrow ? c10::ScalarType::BFloat16 : c10::ScalarType::Float;
}

const char* dtype_name(c10::ScalarType dtype) {
  return dtype == c10::ScalarType::BFloat16 ? "bfloat16" : "float32";
}

std::string device_name(c10::Device device) {
#ifdef SUBSPACE_CUDA
  cudaDeviceProp properties{};
  if (device.is_cuda() && cudaGetDeviceProperties(&properties, device.index()) == cudaSuccess) {
    return properties.name;
  }
#endif
  return device.is_cpu() ? "cpu" : device.str();
}

}  // namespace subspace::train
