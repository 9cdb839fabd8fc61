#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>

#include "train/settings.h"

namespace subspace::train {

/// What `precision` means on a device: bfloat16 if it says so, or says `auto` on a GPU.
c10::ScalarType chosen_dtype(const Settings& settings, c10::Device device);

/// The same in a word, "bfloat16" or "float32".
const char* dtype_name(c10::ScalarType dtype);

/// Operations a second that a device does in that type at most, by its maker (dense; NVIDIA H100
/// and H200 data sheets, SXM: 989 TFLOP/s in bfloat16). 0: not known here.
double peak_flops(const std::string& device_name, c10::ScalarType dtype);

/// "218.0 TFLOP/s (22.0 % of 989)", "31.2 GFLOP/s"; `peak` 0: not known.
std::string flops_text(double per_second, double peak);

/// "NVIDIA H200" of a GPU, "cpu" of the processor.
std::string device_name(c10::Device device);

}  // namespace subspace::train
