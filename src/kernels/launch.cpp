#include "kernels/launch.h"

#include "base/error.h"

namespace subspace::kernels {

void launch_failed(const char* kernel, const char* reason) {
  fail(ErrorCode::Internal, "{}: the CUDA launch failed: {}", kernel, reason);
}

}  // namespace subspace::kernels
