#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/isa.h"
#include "kernels/matrix_product.h"

namespace subspace {

/// Who multiplies float64 matrices on the CPU: kernels/matrix_product.h or the library that PyTorch
/// was built with (on a GPU, and for other types, always the library).
enum class Multiplier { own, library };

/// The rule: MKL, which PyTorch for x86 brings, has its fast kernels for Intel's processors only,
/// so those get the library and other ones the own product from AVX2 on. It depends on nothing but
/// the processor: the same run gives the same bits.
Multiplier multiplier(kernels::Vendor vendor, kernels::Isa widest);
/// The same for this processor and the tensor's device and type.
Multiplier multiplier_for(const at::Tensor& x);

/// Threads that a product started here may use.
int product_threads();

/// A matrix [m, n] or matrices [H, m, n] as the own product takes them, without a copy if rows or
/// columns lie in one piece; with one, `kept` holds it.
kernels::ProductOperand product_operand(const at::Tensor& x, at::Tensor& kept);

/// a b, [m, k] [k, n] or [H, m, k] [H, k, n], where either may be one matrix or one of a batch of
/// one for all H. No gradient. The own product's bits do not depend on the number of threads.
at::Tensor product(const at::Tensor& a, const at::Tensor& b);
at::Tensor product(const at::Tensor& a, const at::Tensor& b, Multiplier by);

}  // namespace subspace
