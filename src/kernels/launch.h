#pragma once

namespace subspace::kernels {

/// Throws Internal: "<kernel>: the CUDA launch failed: <reason>". CUDA sources report through it
/// because nvcc's front end does not get through fmt's headers, which base/error.h includes.
[[noreturn]] void launch_failed(const char* kernel, const char* reason);

}  // namespace subspace::kernels
