#pragma once

#include <cstdint>

#include "kernels/dequantize.h"

namespace subspace::kernels {

/// Instruction-set versions of one run: `count` consecutive values times one finite scale. Each
/// returns how many of the values it wrote (the caller does the rest, and all of a format that the
/// version does not know), and clears `*finite` if one of them was NaN or infinite; their output is
/// then unspecified and the caller converts the run again by the portable route.
///
/// `in` need not be aligned. `streaming` writes around the cache.
std::int64_t dequantize_run_avx2(Format format, const void* in, std::int64_t count, double scale,
                                 double* out, bool streaming, bool* finite);

/// Orders streaming writes before whatever the thread does next.
void dequantize_fence_avx2();

}  // namespace subspace::kernels
