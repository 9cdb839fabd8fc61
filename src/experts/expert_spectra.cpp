#include "experts/expert_spectra.h"

#include <ATen/ATen.h>

#include "spectrum/eigenvalues.h"
#include "spectrum/gram.h"

namespace subspace::experts {
namespace {

MapSpectra stack_of(const std::string& map, const at::Tensor& values, std::int64_t rows,
                    std::int64_t columns) {
  MapSpectra out;
  out.map = map;
  out.stack = values.to(at::kCPU).narrow(0, 0, std::min(rows, columns)).contiguous();
  out.stack_shape = {rows, columns};
  out.stack_chain = {rows, columns};
  return out;
}

/// Of the vectors of all experts, as they are and without their mean: X^T X - N m^T m.
void add_tables(const ExpertTensors& tensors, std::vector<MapSpectra>& out) {
  const std::int64_t experts = tensors.z.size(0), width = tensors.w1.size(1);
  at::Tensor gram = at::zeros({width, width}, tensors.z.options());
  at::Tensor sum = at::zeros({1, width}, tensors.z.options());
  by_pieces(tensors.z, [&](std::int64_t, const at::Tensor& latents) {
    const at::Tensor rows = tensors.read(latents);
    gram.add_(gram_of_columns(rows));
    sum.add_(rows.sum(0, /*keepdim=*/true));
  });
  const at::Tensor centred = gram - at::matmul(sum.t(), sum) / static_cast<double>(experts);
  out.push_back(stack_of("TABLE", singular_values_of_gram(gram), experts, width));
  out.push_back(stack_of("TABLE-MEAN", singular_values_of_gram(centred), experts, width));
}

}  // namespace

at::Tensor singular_values(const at::Tensor& x) {
  const bool tall = x.size(0) >= x.size(1);
  return singular_values_of_gram(gram_of_columns((tall ? x : x.t()).contiguous()));
}

std::vector<MapSpectra> expert_spectra(const ExpertTensors& tensors) {
  std::vector<MapSpectra> out;
  auto add = [&](const char* map, const at::Tensor& x) {
    if (x.defined()) out.push_back(stack_of(map, singular_values(x), x.size(0), x.size(1)));
  };
  add("Z", tensors.z);
  if (tensors.z.defined()) add_tables(tensors, out);
  add("DOWN", tensors.down);
  add("UP", tensors.up);
  add("W1", tensors.w1);
  add("WU", tensors.w_u);
  add("WV", tensors.w_v);
  add("K1", tensors.keys[0]);
  add("K2", tensors.keys[1]);
  return out;
}

}  // namespace subspace::experts
