#pragma once

#include <cuda_runtime.h>

#include "kernels/launch.h"

namespace subspace::kernels {

/// Every CUDA call of a launch goes through this: an exit code of zero proves nothing else.
inline void check_cuda(cudaError_t status, const char* kernel) {
  if (status != cudaSuccess) launch_failed(kernel, cudaGetErrorString(status));
}

/// Lets launches of this kernel have as much dynamic shared memory as the device gives a block. The
/// limit belongs to the kernel, not to a launch: set to what one launch needs, it would fail
/// another thread's larger one between its own setting and its launch.
template <typename Kernel>
void allow_shared_memory(Kernel* kernel, const char* name) {
  int device = 0, most = 0;
  cudaFuncAttributes attributes;
  check_cuda(cudaGetDevice(&device), name);
  check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), name);
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), name);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  most - static_cast<int>(attributes.sharedSizeBytes)),
             name);
}

}  // namespace subspace::kernels
