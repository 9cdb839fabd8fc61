#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>

#include "kernels/element.h"

namespace subspace::ops {

/// Checks of one operator's arguments. They work on symbolic sizes as on numbers, so that the same
/// ones serve tracing and running; messages begin "subspace::OP: NAME".
class Arguments {
 public:
  explicit Arguments(const char* op) : op_(op) {}

  /// `layout` names the axes for the message, e.g. "[tokens, d_h]". A size of -1 may be any.
  void shape(const char* name, const at::Tensor& tensor, const char* layout,
             std::initializer_list<c10::SymInt> sizes) const;
  /// float32 or bfloat16.
  void floating(const char* name, const at::Tensor& tensor) const;
  void type(const char* name, const at::Tensor& tensor, at::ScalarType expected) const;
  /// The same type and device as `first`.
  void like(const char* name, const at::Tensor& tensor, const char* first_name,
            const at::Tensor& first) const;
  void device(const char* name, const at::Tensor& tensor, const char* first_name,
              const at::Tensor& first) const;
  /// A multiple of 32 up to `most`.
  void width(const char* name, const c10::SymInt& width, std::int64_t most) const;
  void below(const char* what, const c10::SymInt& value, std::int64_t limit) const;
  /// One or more, unless `scores` [tokens, selections] ask for none.
  void some_experts(const c10::SymInt& experts, const at::Tensor& scores) const;
  /// Every index of a CPU tensor in [0, experts).
  void experts(const at::Tensor& index, std::int64_t experts) const;

 private:
  const char* op_;
};

kernels::Element element_of(const at::Tensor& tensor);

/// As the kernels read it, contiguous and 16-byte aligned: itself or a copy.
at::Tensor ready(const at::Tensor& tensor);

}  // namespace subspace::ops
