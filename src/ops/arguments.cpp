#include "ops/arguments.h"

#include <cstdint>

namespace subspace::ops {
namespace {

bool holds(const c10::SymBool& condition) { return condition.expect_true(__FILE__, __LINE__); }

}  // namespace

void Arguments::shape(const char* name, const at::Tensor& tensor, const char* layout,
                      std::initializer_list<c10::SymInt> sizes) const {
  bool fits = tensor.dim() == static_cast<std::int64_t>(sizes.size());
  std::int64_t axis = 0;
  for (const c10::SymInt& size : sizes) {
    if (!fits) break;
    const bool any = size.maybe_as_int() == -1;
    fits = any || holds(tensor.sym_size(axis).sym_eq(size));
    ++axis;
  }
  TORCH_CHECK_VALUE(fits, "subspace::", op_, ": ", name, " has the shape ", tensor.sym_sizes(),
                    "; expected ", layout, " = ", c10::SymIntArrayRef(sizes),
                    sizes.size() > 0 ? " (-1: any)" : "");
}

void Arguments::floating(const char* name, const at::Tensor& tensor) const {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16,
                   "subspace::", op_, ": ", name, " is ", tensor.scalar_type(),
                   "; expected Float or BFloat16: convert it with .to()");
}

void Arguments::type(const char* name, const at::Tensor& tensor, at::ScalarType expected) const {
  TORCH_CHECK_TYPE(tensor.scalar_type() == expected, "subspace::", op_, ": ", name, " is ",
                   tensor.scalar_type(), "; expected ", expected);
}

void Arguments::device(const char* name, const at::Tensor& tensor, const char* first_name,
                       const at::Tensor& first) const {
  TORCH_CHECK_VALUE(tensor.device() == first.device(), "subspace::", op_, ": ", name, " is on ",
                    tensor.device(), " and ", first_name, " on ", first.device(),
                    "; expected one device");
}

void Arguments::like(const char* name, const at::Tensor& tensor, const char* first_name,
                     const at::Tensor& first) const {
  TORCH_CHECK_TYPE(tensor.scalar_type() == first.scalar_type(), "subspace::", op_, ": ", name,
                   " is ", tensor.scalar_type(), " and ", first_name, " is ", first.scalar_type(),
                   "; expected the same type: convert one with .to(), or use torch.autocast");
  device(name, tensor, first_name, first);
}

void Arguments::width(const char* name, const c10::SymInt& width, std::int64_t most) const {
  TORCH_CHECK_VALUE(
      holds((width % 32).sym_eq(0)) && holds(width.sym_gt(0)) && holds(width.sym_le(most)),
      "subspace::", op_, ": ", name, " is ", width, "; expected a multiple of 32 up to ", most);
}

void Arguments::below(const char* what, const c10::SymInt& value, std::int64_t limit) const {
  TORCH_CHECK_VALUE(holds(value.sym_lt(limit)), "subspace::", op_, ": ", what, " are ", value,
                    "; expected fewer than ", limit, ": split the batch");
}

void Arguments::some_experts(const c10::SymInt& experts, const at::Tensor& scores) const {
  if (holds(experts.sym_gt(0))) return;
  TORCH_CHECK_VALUE(scores.sym_numel() == 0, "subspace::", op_, ": there are no experts, and ",
                    scores.sym_numel(), " selections of them");
}

void Arguments::experts(const at::Tensor& index, std::int64_t experts) const {
  if (!index.is_cpu()) return;
  const auto* value = index.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < index.numel(); ++i) {
    TORCH_CHECK_INDEX(value[i] >= 0 && value[i] < experts, "subspace::", op_, ": index holds ",
                      value[i], " at [", i / index.size(-1), ", ", i % index.size(-1),
                      "]; expected an expert in [0, ", experts, ")");
  }
}

kernels::Element element_of(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat ? kernels::Element::f32 : kernels::Element::bf16;
}

at::Tensor ready(const at::Tensor& tensor) {
  const at::Tensor whole = tensor.contiguous();
  const auto address = reinterpret_cast<std::uintptr_t>(whole.const_data_ptr());
  return address % 16 == 0 ? whole : whole.clone();
}

}  // namespace subspace::ops
