#pragma once

#include <cstddef>
#include <cstdint>

#include "checkpoint/dtype.h"

namespace subspace {

/// Rows and columns of an FP8 block with one scale.
inline constexpr std::int64_t kBlock = 128;

/// Rounds up to kBlock rows of a matrix to a storage format, to nearest, ties to even.
///
///   F32, BF16   out[i, j] = round(in[i, j])
///   F8_E4M3     out[i, j] = round(in[i, j] / scale[j / 128]),  scale = max |block| / 448
///               (1 for a block of zeros)
///
/// in [rows, cols] float64; out [rows, cols] of `dtype`; scale [ceil(cols / 128)], for F8_E4M3
/// only. Returns the sum of squares of (value as stored - in): the square root of the sum over a
/// matrix bounds the change of every singular value (Weyl).
double encode_rows(const double* in, std::int64_t rows, std::int64_t cols, DType dtype,
                   std::byte* out, float* scale);

}  // namespace subspace
