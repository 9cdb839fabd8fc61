// Compiled for AVX2 and FMA. No standard library and no shared inline function here: the linker
// could keep this file's copy for everybody.
#include <immintrin.h>

#include "kernels/expert_rows.h"

namespace subspace::kernels {
namespace {

struct F32 {
  using Stored = float;
  static __m256 load(const float* at) { return _mm256_loadu_ps(at); }
  static void store(float* at, __m256 values) { _mm256_storeu_ps(at, values); }
};

struct Bf16 {
  using Stored = std::uint16_t;
  static __m256 load(const std::uint16_t* at) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
  }
  static void store(std::uint16_t* at, __m256 values) {
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    const __m256i chosen = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i packed =
        _mm256_permute4x64_epi64(_mm256_packus_epi32(chosen, chosen), 0 | 2 << 2 | 0 << 4 | 2 << 6);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(packed));
  }
};

inline float sum(__m256 v) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

/// The last n % 8 elements go through a block of eight, the rest of it zero.
template <typename Type>
__m256 load_tail(const typename Type::Stored* at, std::int64_t left) {
  typename Type::Stored block[8] = {};
  for (std::int64_t i = 0; i < left; ++i) block[i] = at[i];
  return Type::load(block);
}

template <typename Type>
struct Rows {
  using Stored = typename Type::Stored;

  static float dot(const void* row, const float* x, std::int64_t n) {
    const auto* in = static_cast<const Stored*>(row);
    __m256 a = _mm256_setzero_ps(), b = a, c = a, d = a;
    std::int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
      a = _mm256_fmadd_ps(Type::load(in + i), _mm256_loadu_ps(x + i), a);
      b = _mm256_fmadd_ps(Type::load(in + i + 8), _mm256_loadu_ps(x + i + 8), b);
      c = _mm256_fmadd_ps(Type::load(in + i + 16), _mm256_loadu_ps(x + i + 16), c);
      d = _mm256_fmadd_ps(Type::load(in + i + 24), _mm256_loadu_ps(x + i + 24), d);
    }
    for (; i + 8 <= n; i += 8) a = _mm256_fmadd_ps(Type::load(in + i), _mm256_loadu_ps(x + i), a);
    if (i < n) {
      b = _mm256_fmadd_ps(load_tail<Type>(in + i, n - i), load_tail<F32>(x + i, n - i), b);
    }
    return sum(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)));
  }

  static void add(const void* row, float weight, float* y, std::int64_t n) {
    const auto* in = static_cast<const Stored*>(row);
    const __m256 factor = _mm256_set1_ps(weight);
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      _mm256_storeu_ps(y + i, _mm256_fmadd_ps(factor, Type::load(in + i), _mm256_loadu_ps(y + i)));
    }
    if (i < n) {
      float block[8];
      _mm256_storeu_ps(block, _mm256_fmadd_ps(factor, load_tail<Type>(in + i, n - i),
                                              load_tail<F32>(y + i, n - i)));
      for (int k = 0; i < n; ++i, ++k) y[i] = block[k];
    }
  }

  static void widen(const void* row, float* y, std::int64_t n) {
    const auto* in = static_cast<const Stored*>(row);
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, Type::load(in + i));
    if (i < n) {
      float block[8];
      _mm256_storeu_ps(block, load_tail<Type>(in + i, n - i));
      for (int k = 0; i < n; ++i, ++k) y[i] = block[k];
    }
  }

  static void narrow(const float* y, void* row, std::int64_t n) {
    auto* out = static_cast<Stored*>(row);
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8) Type::store(out + i, _mm256_loadu_ps(y + i));
    if (i < n) {
      Stored block[8];
      Type::store(block, load_tail<F32>(y + i, n - i));
      for (int k = 0; i < n; ++i, ++k) out[i] = block[k];
    }
  }
};

}  // namespace

RowOps row_ops_avx2(Element element) {
  if (element == Element::f32) {
    return {Rows<F32>::dot, Rows<F32>::add, Rows<F32>::widen, Rows<F32>::narrow};
  }
  return {Rows<Bf16>::dot, Rows<Bf16>::add, Rows<Bf16>::widen, Rows<Bf16>::narrow};
}

}  // namespace subspace::kernels
