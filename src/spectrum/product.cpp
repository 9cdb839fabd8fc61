#include "spectrum/product.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "base/error.h"

namespace subspace {

Multiplier multiplier(kernels::Vendor vendor, kernels::Isa widest) {
  return vendor == kernels::Vendor::intel || widest == kernels::Isa::portable ? Multiplier::library
                                                                              : Multiplier::own;
}

Multiplier multiplier_for(const at::Tensor& x) {
  static const Multiplier here = multiplier(kernels::processor_vendor(), kernels::widest_isa());
  return x.is_cpu() && x.scalar_type() == at::kDouble ? here : Multiplier::library;
}

int product_threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

kernels::ProductOperand product_operand(const at::Tensor& x, at::Tensor& kept) {
  kept = x;
  const std::int64_t batch = x.dim() == 3 && x.size(0) > 1 ? x.stride(0) : 0;
  const auto rows = x.size(-2), columns = x.size(-1);
  if (columns <= 1 || x.stride(-1) == 1) {
    return {x.const_data_ptr<double>(), x.stride(-2), kernels::Stored::rows, batch};
  }
  if (rows <= 1 || x.stride(-2) == 1) {
    return {x.const_data_ptr<double>(), x.stride(-1), kernels::Stored::columns, batch};
  }
  return product_operand(x.contiguous(), kept);
}

at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  return product(a, b, multiplier_for(a));
}

at::Tensor product(const at::Tensor& a, const at::Tensor& b, Multiplier by) {
  const auto count = [](const at::Tensor& x) { return x.dim() == 3 ? x.size(0) : 1; };
  const bool shapes = (a.dim() == 2 || a.dim() == 3) && (b.dim() == 2 || b.dim() == 3) &&
                      a.size(-1) == b.size(-2) && a.scalar_type() == b.scalar_type() &&
                      (count(a) == count(b) || count(a) == 1 || count(b) == 1);
  if (!shapes) {
    fail(ErrorCode::Internal, "a product of {} values in {} axes and {} in {} that do not fit",
         a.numel(), a.dim(), b.numel(), b.dim());
  }
  if (by == Multiplier::library) return at::matmul(a, b);
  const std::int64_t batch = count(a) == 1 ? count(b) : count(a);
  const std::int64_t m = a.size(-2), n = b.size(-1), k = a.size(-1);
  at::Tensor out = at::empty({batch, m, n}, a.options());
  at::Tensor left, right;
  kernels::matrix_product_cpu({.a = product_operand(a, left),
                               .b = product_operand(b, right),
                               .c = out.data_ptr<double>(),
                               .stride = n,
                               .batch_stride = m * n,
                               .m = m,
                               .n = n,
                               .k = k,
                               .batch = batch},
                              product_threads());
  return a.dim() == 2 && b.dim() == 2 ? out.squeeze(0) : out;
}

}  // namespace subspace
