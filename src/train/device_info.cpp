#include "train/device_info.h"

#include <fmt/format.h>

#include <algorithm>

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

double peak_flops(const std::string& device_name, c10::ScalarType dtype) {
  // Whole names: other cards of the family (PCIe, NVL) and parts of a card have other rates.
  const bool sxm = device_name == "NVIDIA H100 80GB HBM3" || device_name == "NVIDIA H200";
  return sxm && dtype == c10::ScalarType::BFloat16 ? 989e12 : 0;
}

std::string flops_text(double per_second, double peak) {
  const bool large = per_second >= 1e12;
  std::string text =
      fmt::format("{:.1f} {}FLOP/s", per_second / (large ? 1e12 : 1e9), large ? "T" : "G");
  if (peak > 0) text += fmt::format(" ({:.1f} % of {:.0f})", 100 * per_second / peak, peak / 1e12);
  return text;
}

std::string device_name(c10::Device device) {
#ifdef SUBSPACE_CUDA
  cudaDeviceProp properties{};
  if (device.is_cuda() &&
      cudaGetDeviceProperties(&properties, std::max<int>(device.index(), 0)) == cudaSuccess) {
    return properties.name;
  }
#endif
  return device.is_cpu() ? "cpu" : device.str();
}

}  // namespace subspace::train
