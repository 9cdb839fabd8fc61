#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/isa.h"

namespace subspace::kernels {

/// Storage formats that weights come in. e4m3: 1 sign, 4 exponent (bias 7), 3 mantissa bits, no
/// infinity, NaN = 0x7f and 0xff, largest 448 (OCP "OFP8", 2023). e8m0: 2^(byte - 127), NaN = 0xff.
enum class Format { f64, f32, f16, bf16, f8_e4m3, f8_e8m0 };

/// Rows of a row-major matrix to float64, with block scales for FP8.
///
///   out[i, j] = value(in[i, j]) * scale[(row0 + i) / block_rows, j / block_cols]
///
/// in    [rows, cols] of `format`, contiguous;  out [rows, cols] float64, contiguous
/// scale [ceil(all rows / block_rows), ceil(cols / block_cols)] float32, row-major with
///       `scale_stride` values a row; nullptr for none
/// row0  index, in the whole matrix, of the first row given
///
/// Exact: every format's values and their product with a float32 scale fit float64 (fewer than 53
/// significant bits). Moves rows*cols*(size + 8) bytes; that is the floor.
struct Dequantize {
  const void* in = nullptr;
  Format format = Format::f64;
  const float* scale = nullptr;
  double* out = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row0 = 0;
  std::int64_t block_rows = 128;
  std::int64_t block_cols = 128;
  std::int64_t scale_stride = 0;
  /// The output is larger than the caches and will not be read soon: write around them, which saves
  /// reading every line before it is overwritten.
  bool streaming = false;
};

/// Each returns the flat index (in `out`) of the first value that is NaN or infinite, or -1; all
/// values are written either way. `isa` must be available; all give the same bits.
std::int64_t dequantize_reference(const Dequantize& p);
std::int64_t dequantize_cpu(const Dequantize& p, int threads, Isa isa = best_isa());
/// `first_bad` is one int64 in device memory, set by the kernel to that index or INT64_MAX. `in`,
/// `scale` and `out` are device memory. Throws Internal with CUDA's reason if the launch fails.
void dequantize_cuda(const Dequantize& p, std::int64_t* first_bad, Stream stream);

}  // namespace subspace::kernels
