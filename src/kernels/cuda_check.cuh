#pragma once

#include <cuda_runtime.h>

#include "kernels/launch.h"

namespace subspace::kernels {

/// Every CUDA call of a launch goes through this: an exit code of zero proves nothing else.
inline void check_cuda(cudaError_t status, const char* kernel) {
  if (status != cudaSuccess) launch_failed(kernel, cudaGetErrorString(status));
}

}  // namespace subspace::kernels
