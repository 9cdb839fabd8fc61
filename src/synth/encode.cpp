#include "synth/encode.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace subspace {
namespace {

constexpr double kLargestE4m3 = 448;

template <typename Stored>
double encode_as(const double* in, std::int64_t count, std::byte* out) {
  double squares = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const Stored stored(static_cast<float>(in[i]));
    std::memcpy(out + static_cast<std::size_t>(i) * sizeof stored, &stored, sizeof stored);
    const double error = static_cast<double>(static_cast<float>(stored)) - in[i];
    squares += error * error;
  }
  return squares;
}

double encode_block(const double* in, std::int64_t rows, std::int64_t width, std::int64_t stride,
                    std::byte* out, float* scale) {
  double largest = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < width; ++j) {
      largest = std::max(largest, std::abs(in[i * stride + j]));
    }
  }
  *scale = largest > 0 ? static_cast<float>(largest / kLargestE4m3) : 1.0F;
  const double by = *scale;
  double squares = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < width; ++j) {
      const double value = in[i * stride + j];
      const c10::Float8_e4m3fn stored(static_cast<float>(value / by));
      out[i * stride + j] = static_cast<std::byte>(stored.x);
      const double error = static_cast<double>(static_cast<float>(stored)) * by - value;
      squares += error * error;
    }
  }
  return squares;
}

}  // namespace

double encode_rows(const double* in, std::int64_t rows, std::int64_t cols, DType dtype,
                   std::byte* out, float* scale) {
  if (dtype == DType::F32) return encode_as<float>(in, rows * cols, out);
  if (dtype == DType::BF16) return encode_as<c10::BFloat16>(in, rows * cols, out);
  if (dtype != DType::F8_E4M3) {
    fail(ErrorCode::Internal, "weights cannot be made in {}", dtype_name(dtype));
  }
  double squares = 0;
  for (std::int64_t j = 0; j < cols; j += kBlock) {
    squares +=
        encode_block(in + j, rows, std::min(kBlock, cols - j), cols, out + j, scale + j / kBlock);
  }
  return squares;
}

}  // namespace subspace
