#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "spectrum/product.h"

namespace subspace {

/// A symmetric matrix on the CPU, [n, n] float64, reduced by orthogonal similarity to a band of
/// `width` diagonals beside the main one: [n, 2 width], row j the band's column j from the diagonal
/// down, then zeros (as kernels::BandToTridiagonal wants it). Only the lower triangle is read;
/// `a` is overwritten.
///
///   panel by panel: A[below, panel] = Q R by Householder's reflections, Q = I - V T V^T
///   A <- Q^T A Q = A - V W^T - W V^T,   W = A V T - 1/2 V (T^T V^T A V T)
///
/// 4/3 n^3 operations, all but O(n^2 width) of them in matrix products, which the usual reduction
/// straight to tridiagonal form is not: half of its work is bound by memory. Extra memory: O(n
/// width). Entries should be near 1. Source: Bischof, Lang and Sun, "A framework for symmetric band
/// reduction", ACM TOMS 26 (2000).
/// `a` has contiguous rows. Without `by`, product.h's rule decides who multiplies.
at::Tensor reduce_to_band(const at::Tensor& a, std::int64_t width);
at::Tensor reduce_to_band(const at::Tensor& a, std::int64_t width, Multiplier by);

}  // namespace subspace
