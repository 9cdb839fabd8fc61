#include "kernels/dequantize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <thread>
#include <type_traits>
#include <vector>

#include "kernels/dequantize_runs.h"

namespace subspace::kernels {
namespace {

template <typename T>
T load(const void* in, std::int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(in) + index * static_cast<std::int64_t>(sizeof(T)),
              sizeof(T));
  return value;
}

double half_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::nan("") : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

double e4m3_value(std::uint8_t bits) {
  const int exponent = bits >> 3 & 15;
  const int mantissa = bits & 7;
  const double sign = bits >> 7 ? -1 : 1;
  if (exponent == 15 && mantissa == 7) return std::nan("");
  if (exponent == 0) return sign * std::ldexp(mantissa, -9);
  return sign * std::ldexp(8 + mantissa, exponent - 10);
}

double e8m0_value(std::uint8_t bits) {
  return bits == 255 ? std::nan("") : std::ldexp(1.0, bits - 127);
}

double value_at(const Dequantize& p, std::int64_t index) {
  switch (p.format) {
    case Format::f64:
      return load<double>(p.in, index);
    case Format::f32:
      return load<float>(p.in, index);
    case Format::f16:
      return half_value(load<std::uint16_t>(p.in, index));
    case Format::bf16:
      return std::bit_cast<float>(std::uint32_t{load<std::uint16_t>(p.in, index)} << 16);
    case Format::f8_e4m3:
      return e4m3_value(load<std::uint8_t>(p.in, index));
    case Format::f8_e8m0:
      return e8m0_value(load<std::uint8_t>(p.in, index));
  }
  return std::nan("");
}

/// Every 8-bit or 16-bit code's value. 256 doubles stay in the first cache,
/// 65,536 (512 kB) in the second.
template <std::size_t N>
std::array<double, N> make_table(
    double (*value)(std::conditional_t<N == 256, std::uint8_t, std::uint16_t>)) {
  std::array<double, N> table;
  for (std::size_t code = 0; code < N; ++code) {
    table[code] =
        value(static_cast<std::conditional_t<N == 256, std::uint8_t, std::uint16_t>>(code));
  }
  return table;
}

/// One run of `count` values of a row, under one scale. Branch-free, so that it
/// vectorises; the sum of v - v is NaN exactly if a value was not finite.
template <typename Load>
bool convert(Load value, double* out, std::int64_t count, double scale) {
  double check = 0;
  for (std::int64_t j = 0; j < count; ++j) {
    const double v = value(j) * scale;
    out[j] = v;
    check += v - v;
  }
  return check == 0;
}

bool convert_run_portable(const Dequantize& p, std::int64_t from, std::int64_t count,
                          double scale) {
  double* out = p.out + from;
  switch (p.format) {
    case Format::f64: {
      const auto* in = static_cast<const char*>(p.in) + 8 * from;
      return convert([in](std::int64_t j) { return load<double>(in, j); }, out, count, scale);
    }
    case Format::f32: {
      const auto* in = static_cast<const char*>(p.in) + 4 * from;
      return convert([in](std::int64_t j) { return double{load<float>(in, j)}; }, out, count,
                     scale);
    }
    case Format::bf16: {
      const auto* in = static_cast<const char*>(p.in) + 2 * from;
      return convert(
          [in](std::int64_t j) {
            const std::uint32_t bits = std::uint32_t{load<std::uint16_t>(in, j)} << 16;
            return double{std::bit_cast<float>(bits)};
          },
          out, count, scale);
    }
    case Format::f16: {
      static const auto table = make_table<65536>(half_value);
      const auto* in = static_cast<const char*>(p.in) + 2 * from;
      return convert([in](std::int64_t j) { return table[load<std::uint16_t>(in, j)]; }, out, count,
                     scale);
    }
    case Format::f8_e4m3: {
      static const auto table = make_table<256>(e4m3_value);
      const auto* in = static_cast<const std::uint8_t*>(p.in) + from;
      return convert([in](std::int64_t j) { return table[in[j]]; }, out, count, scale);
    }
    case Format::f8_e8m0: {
      static const auto table = make_table<256>(e8m0_value);
      const auto* in = static_cast<const std::uint8_t*>(p.in) + from;
      return convert([in](std::int64_t j) { return table[in[j]]; }, out, count, scale);
    }
  }
  return false;
}

std::int64_t format_bytes(Format format) {
  switch (format) {
    case Format::f64:
      return 8;
    case Format::f32:
      return 4;
    case Format::f16:
    case Format::bf16:
      return 2;
    case Format::f8_e4m3:
    case Format::f8_e8m0:
      return 1;
  }
  return 1;
}

/// Values [from, from + count), all under one scale; false if one is not finite.
bool convert_run(const Dequantize& p, Isa isa, std::int64_t from, std::int64_t count,
                 double scale) {
  std::int64_t done = 0;
#if defined(__x86_64__)
  if (isa == Isa::avx2 && std::isfinite(scale)) {
    bool finite = true;
    const auto* in = static_cast<const char*>(p.in) + from * format_bytes(p.format);
    done = dequantize_run_avx2(p.format, in, count, scale, p.out + from, p.streaming, &finite);
    if (!finite) done = 0;
  }
#else
  (void)isa;
#endif
  return done == count || convert_run_portable(p, from + done, count - done, scale);
}

double scale_at(const Dequantize& p, std::int64_t row, std::int64_t col) {
  if (p.scale == nullptr) return 1;
  return p.scale[(p.row0 + row) / p.block_rows * p.scale_stride + col / p.block_cols];
}

std::int64_t first_not_finite(const double* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(values[i])) return i;
  }
  return -1;
}

/// Values a run without scales is cut into, so that the search for a bad one stays short.
constexpr std::int64_t kRun = 32768;

/// Values [begin, end) of a matrix without scales; the index of the first bad one, or -1.
std::int64_t convert_flat(const Dequantize& p, Isa isa, std::int64_t begin, std::int64_t end) {
  std::int64_t first = -1;
  for (std::int64_t from = begin; from < end; from += kRun) {
    const std::int64_t count = std::min(kRun, end - from);
    if (!convert_run(p, isa, from, count, 1) && first < 0) {
      first = from + first_not_finite(p.out + from, count);
    }
  }
  return first;
}

/// Rows [begin, end) of a matrix with scales; the index of the first bad value, or -1.
std::int64_t convert_rows(const Dequantize& p, Isa isa, std::int64_t begin, std::int64_t end) {
  std::int64_t first = -1;
  for (std::int64_t row = begin; row < end; ++row) {
    bool finite = true;
    for (std::int64_t col = 0; col < p.cols; col += p.block_cols) {
      const std::int64_t count = std::min(p.block_cols, p.cols - col);
      finite &= convert_run(p, isa, row * p.cols + col, count, scale_at(p, row, col));
    }
    if (!finite && first < 0) {
      first = row * p.cols + first_not_finite(p.out + row * p.cols, p.cols);
    }
  }
  return first;
}

/// Share `t` of `count`: rows where there are scales, else values, on whole cache lines of output.
std::int64_t convert_share(const Dequantize& p, Isa isa, int t, int count) {
  std::int64_t bad = -1;
  if (p.scale) {
    bad = convert_rows(p, isa, p.rows * t / count, p.rows * (t + 1) / count);
  } else {
    const std::int64_t values = p.rows * p.cols;
    const std::int64_t begin = values / 8 * t / count * 8;
    const std::int64_t end = t + 1 == count ? values : values / 8 * (t + 1) / count * 8;
    bad = convert_flat(p, isa, begin, end);
  }
#if defined(__x86_64__)
  if (isa == Isa::avx2 && p.streaming) dequantize_fence_avx2();
#endif
  return bad;
}

}  // namespace

std::int64_t dequantize_reference(const Dequantize& p) {
  std::int64_t bad = -1;
  for (std::int64_t i = 0; i < p.rows; ++i) {
    for (std::int64_t j = 0; j < p.cols; ++j) {
      const std::int64_t index = i * p.cols + j;
      p.out[index] = value_at(p, index) * scale_at(p, i, j);
      if (bad < 0 && !std::isfinite(p.out[index])) bad = index;
    }
  }
  return bad;
}

std::int64_t dequantize_cpu(const Dequantize& p, int threads, Isa isa) {
  // A thread costs some 20 us to start, about what 50,000 values take.
  const std::int64_t useful = p.rows * p.cols / 50000;
  const auto count =
      static_cast<int>(std::clamp<std::int64_t>(std::min<std::int64_t>(threads, useful), 1, 1024));
  if (count == 1) return convert_share(p, isa, 0, 1);
  std::vector<std::int64_t> bad(static_cast<std::size_t>(count), -1);
  std::vector<std::thread> workers;
  for (int t = 0; t < count; ++t) {
    workers.emplace_back(
        [&, t] { bad[static_cast<std::size_t>(t)] = convert_share(p, isa, t, count); });
  }
  for (auto& worker : workers) worker.join();
  for (const std::int64_t index : bad) {
    if (index >= 0) return index;
  }
  return -1;
}

}  // namespace subspace::kernels
