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

/// "NVIDIA H200" of a GPU, "cpu" of the processor.
std::string device_name(c10::Device device);

}  // namespace subspace::train
