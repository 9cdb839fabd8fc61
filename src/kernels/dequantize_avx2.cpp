// Compiled for AVX2 and F16C. No standard library here: an inline function instantiated in this
// file could be the copy that the linker keeps for everybody.
#include <immintrin.h>

#include "kernels/dequantize_runs.h"

namespace subspace::kernels {
namespace {

constexpr std::int64_t kStep = 16;  // values an iteration

inline void put(double* out, __m256d values, bool streaming) {
  if (streaming) {
    _mm256_stream_pd(out, values);
  } else {
    _mm256_storeu_pd(out, values);
  }
}

inline __m256d low(__m256 values) { return _mm256_cvtps_pd(_mm256_castps256_ps128(values)); }
inline __m256d high(__m256 values) { return _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1)); }

/// 16 values as float32, before scaling.
struct Wide {
  __m256 first, second;
};

struct LoadE4m3 {
  static constexpr int kBytes = 1;
  // An e4m3 code shifted into a half's fields is its value times 2^-8, subnormals included, and
  // F16C converts those at full speed whatever the denormal mode.
  static constexpr double kFactor = 256;
  __m128i nan = _mm_setzero_si128();

  Wide operator()(const char* in) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
    const __m128i magnitude = _mm_and_si128(codes, _mm_set1_epi8(0x7f));
    nan = _mm_or_si128(nan, _mm_cmpeq_epi8(magnitude, _mm_set1_epi8(0x7f)));
    const __m256i words = _mm256_cvtepu8_epi16(codes);
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(words, _mm256_set1_epi16(0x80)), 8);
    const __m256i rest = _mm256_slli_epi16(_mm256_and_si256(words, _mm256_set1_epi16(0x7f)), 7);
    const __m256i half = _mm256_or_si256(sign, rest);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(half)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
  }
  bool finite() const { return _mm_movemask_epi8(nan) == 0; }
};

/// Formats whose NaN and infinity survive the conversion: found in the output.
struct Checked {
  static constexpr double kFactor = 1;
  static bool finite() { return true; }
};

struct LoadF16 : Checked {
  static constexpr int kBytes = 2;
  Wide operator()(const char* in) const {
    const auto* at = reinterpret_cast<const __m128i*>(in);
    return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
  }
};

struct LoadBf16 : Checked {
  static constexpr int kBytes = 2;
  static __m256 widen(__m128i words) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
  }
  Wide operator()(const char* in) const {
    const auto* at = reinterpret_cast<const __m128i*>(in);
    return {widen(_mm_loadu_si128(at)), widen(_mm_loadu_si128(at + 1))};
  }
};

struct LoadF32 : Checked {
  static constexpr int kBytes = 4;
  Wide operator()(const char* in) const {
    const auto* at = reinterpret_cast<const float*>(in);
    return {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)};
  }
};

/// x - x is zero for finite x and NaN otherwise; NaN stays in the sum.
struct FiniteCheck {
  __m256d sum[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(),
                    _mm256_setzero_pd()};
  void see(int lane, __m256d v) { sum[lane] = _mm256_add_pd(sum[lane], _mm256_sub_pd(v, v)); }
  bool finite() const {
    const __m256d all = _mm256_add_pd(_mm256_add_pd(sum[0], sum[1]), _mm256_add_pd(sum[2], sum[3]));
    return _mm256_movemask_pd(_mm256_cmp_pd(all, all, _CMP_UNORD_Q)) == 0;
  }
};

template <typename Load, bool kStreaming>
std::int64_t run(const char* in, std::int64_t count, double scale, double* out, bool* finite) {
  const __m256d factor = _mm256_set1_pd(scale * Load::kFactor);
  Load load;
  FiniteCheck check;
  std::int64_t done = 0;
  for (; done + kStep <= count; done += kStep) {
    const Wide wide = load(in + done * Load::kBytes);
    const __m256d values[4] = {
        _mm256_mul_pd(low(wide.first), factor), _mm256_mul_pd(high(wide.first), factor),
        _mm256_mul_pd(low(wide.second), factor), _mm256_mul_pd(high(wide.second), factor)};
    for (int lane = 0; lane < 4; ++lane) {
      if constexpr (Load::kBytes > 1) check.see(lane, values[lane]);
      put(out + done + 4 * lane, values[lane], kStreaming);
    }
  }
  if (!check.finite() || !load.finite()) *finite = false;
  return done;
}

template <bool kStreaming>
std::int64_t run_f64(const char* in, std::int64_t count, double scale, double* out, bool* finite) {
  const __m256d factor = _mm256_set1_pd(scale);
  const auto* at = reinterpret_cast<const double*>(in);
  FiniteCheck check;
  std::int64_t done = 0;
  for (; done + kStep <= count; done += kStep) {
    for (int lane = 0; lane < 4; ++lane) {
      const __m256d value = _mm256_mul_pd(_mm256_loadu_pd(at + done + 4 * lane), factor);
      check.see(lane, value);
      put(out + done + 4 * lane, value, kStreaming);
    }
  }
  if (!check.finite()) *finite = false;
  return done;
}

template <bool kStreaming>
std::int64_t dispatch(Format format, const char* in, std::int64_t count, double scale, double* out,
                      bool* finite) {
  switch (format) {
    case Format::f64:
      return run_f64<kStreaming>(in, count, scale, out, finite);
    case Format::f32:
      return run<LoadF32, kStreaming>(in, count, scale, out, finite);
    case Format::f16:
      return run<LoadF16, kStreaming>(in, count, scale, out, finite);
    case Format::bf16:
      return run<LoadBf16, kStreaming>(in, count, scale, out, finite);
    case Format::f8_e4m3:
      return run<LoadE4m3, kStreaming>(in, count, scale, out, finite);
    case Format::f8_e8m0:
      return 0;
  }
  return 0;
}

}  // namespace

std::int64_t dequantize_run_avx2(Format format, const void* in, std::int64_t count, double scale,
                                 double* out, bool streaming, bool* finite) {
  const auto* bytes = static_cast<const char*>(in);
  // Streaming stores exist for aligned addresses only.
  if (streaming && reinterpret_cast<std::uintptr_t>(out) % 32 == 0) {
    return dispatch<true>(format, bytes, count, scale, out, finite);
  }
  return dispatch<false>(format, bytes, count, scale, out, finite);
}

void dequantize_fence_avx2() { _mm_sfence(); }

}  // namespace subspace::kernels
