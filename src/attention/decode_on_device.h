#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "checkpoint/checkpoint.h"

namespace subspace {

/// Checkpoint::decode() on a GPU: the stored bytes (an eighth of float64 for FP8) cross the bus and
/// are converted there, on the current stream. [rows, cols] float64; the same bits and the same
/// errors as on the CPU. A build without the CUDA kernels decodes on the CPU and copies.
at::Tensor decode_on_device(const Checkpoint& checkpoint, const std::string& name, int threads,
                            bool allow_nonfinite, const at::Device& device);

}  // namespace subspace
