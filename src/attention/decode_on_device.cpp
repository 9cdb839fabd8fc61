#include "attention/decode_on_device.h"

#include <ATen/ATen.h>
#ifdef SUBSPACE_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

#include <limits>

namespace subspace {

#ifdef SUBSPACE_CUDA
at::Tensor decode_on_device(const Checkpoint& checkpoint, const std::string& name, int threads,
                            bool allow_nonfinite, const at::Device& device) {
  Checkpoint::Encoding found = checkpoint.encoding(name, allow_nonfinite);
  kernels::Dequantize& p = found.how;
  const auto on_device = at::TensorOptions().device(device);
  const at::Tensor out = at::empty({p.rows, p.cols}, on_device.dtype(at::kDouble));
  if (out.numel() == 0) return out;
  // Pinned memory is copied by the device itself, at the bus's full speed.
  const at::Tensor stored = at::empty({static_cast<std::int64_t>(checkpoint.info(name).bytes())},
                                      at::TensorOptions().dtype(at::kByte).pinned_memory(true));
  checkpoint.read(name, stored.data_ptr(), threads);
  const at::Tensor in = stored.to(device, /*non_blocking=*/true);
  at::Tensor scales;
  if (!found.scales.empty()) {
    scales = at::from_blob(found.scales.data(), {static_cast<std::int64_t>(found.scales.size())},
                           at::kFloat)
                 .to(device);
    p.scale = scales.data_ptr<float>();
  }
  p.in = in.data_ptr();
  p.out = out.data_ptr<double>();
  const at::Tensor first_bad = at::empty({1}, on_device.dtype(at::kLong));
  const auto stream = c10::cuda::getCurrentCUDAStream(device.index());
  kernels::dequantize_cuda(p, first_bad.data_ptr<std::int64_t>(), stream.stream());
  const auto bad = first_bad.item<std::int64_t>();
  if (bad != std::numeric_limits<std::int64_t>::max() && !allow_nonfinite) {
    checkpoint.fail_nonfinite(name, bad, out.view(-1)[bad].item<double>());
  }
  return out;
}
#else
at::Tensor decode_on_device(const Checkpoint& checkpoint, const std::string& name, int threads,
                            bool allow_nonfinite, const at::Device& device) {
  const auto [rows, cols] = matrix_shape(checkpoint.info(name));
  const at::Tensor out = at::empty({rows, cols}, at::kDouble);
  checkpoint.decode(name, out.data_ptr<double>(), threads, allow_nonfinite);
  return out.to(device);
}
#endif

}  // namespace subspace
