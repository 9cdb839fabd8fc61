#include "nn/on_device.h"

#include <ATen/Parallel.h>

#include "base/error.h"

#ifdef SUBSPACE_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

namespace subspace::nn {

// The CUDA versions exist in a build with CUDA only.
#ifdef SUBSPACE_CUDA
#define SUBSPACE_ON_DEVICE(kernel)                                                               \
  if (where.is_cuda()) {                                                                         \
    kernels::kernel##_cuda(p, c10::cuda::getCurrentCUDAStream(where.device().index()).stream()); \
  } else {                                                                                       \
    kernels::kernel##_cpu(p, at::get_num_threads());                                             \
  }
#else
#define SUBSPACE_ON_DEVICE(kernel)                                                        \
  if (!where.is_cpu()) {                                                                  \
    fail(ErrorCode::Internal, "a tensor is on {}, and this program has no kernels there", \
         where.device().str());                                                           \
  }                                                                                       \
  kernels::kernel##_cpu(p, at::get_num_threads());
#endif

void run(const at::Tensor& where, const kernels::Adamw& p) { SUBSPACE_ON_DEVICE(adamw) }
void run(const at::Tensor& where, const kernels::CrossEntropy& p) {
  SUBSPACE_ON_DEVICE(cross_entropy)
}
void run(const at::Tensor& where, const kernels::ExpertCounts& p) {
  SUBSPACE_ON_DEVICE(expert_counts)
}
void run(const at::Tensor& where, const kernels::RmsNorm& p) { SUBSPACE_ON_DEVICE(rms_norm) }
void run(const at::Tensor& where, const kernels::RmsNormGrad& p) {
  SUBSPACE_ON_DEVICE(rms_norm_grad)
}
void run(const at::Tensor& where, const kernels::RotaryHeads& p) {
  SUBSPACE_ON_DEVICE(rotary_heads)
}
void run(const at::Tensor& where, const kernels::RotaryHeadsGrad& p) {
  SUBSPACE_ON_DEVICE(rotary_heads_grad)
}
void run(const at::Tensor& where, const kernels::ShortAttention& p) {
  SUBSPACE_ON_DEVICE(short_attention)
}
void run(const at::Tensor& where, const kernels::ShortAttentionGrad& p) {
  SUBSPACE_ON_DEVICE(short_attention_grad)
}
void run(const at::Tensor& where, const kernels::Swiglu& p) { SUBSPACE_ON_DEVICE(swiglu) }
void run(const at::Tensor& where, const kernels::SwigluGrad& p) { SUBSPACE_ON_DEVICE(swiglu_grad) }

#undef SUBSPACE_ON_DEVICE

bool has_grouped_products(const at::Tensor& x) {
#ifdef SUBSPACE_CUDA
  int major = 0;
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, x.device().index()) ==
             cudaSuccess &&
         major >= 9;
#else
  static_cast<void>(x);
  return false;
#endif
}

}  // namespace subspace::nn
