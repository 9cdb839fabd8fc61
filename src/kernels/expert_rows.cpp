#include "kernels/expert_rows.h"

namespace subspace::kernels {
namespace {

struct F32 {
  using Stored = float;
  static float value(float stored) { return stored; }
  static float stored(float value) { return value; }
};
struct Bf16 {
  using Stored = std::uint16_t;
  static float value(std::uint16_t stored) { return bf16_value(stored); }
  static std::uint16_t stored(float value) { return bf16_bits(value); }
};

template <typename Type>
struct Portable {
  static const typename Type::Stored* elements(const void* row) {
    return static_cast<const typename Type::Stored*>(row);
  }
  /// Eight interleaved sums: shorter chains of rounding than one, and they vectorise.
  static float dot(const void* row, const float* x, std::int64_t n) {
    float sums[8] = {};
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      for (int k = 0; k < 8; ++k) sums[k] += Type::value(elements(row)[i + k]) * x[i + k];
    }
    for (int k = 0; i < n; ++i, ++k) sums[k] += Type::value(elements(row)[i]) * x[i];
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) +
           ((sums[2] + sums[6]) + (sums[3] + sums[7]));
  }
  static void add(const void* row, float weight, float* y, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) y[i] += weight * Type::value(elements(row)[i]);
  }
  static void widen(const void* row, float* y, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) y[i] = Type::value(elements(row)[i]);
  }
  static void narrow(const float* y, void* row, std::int64_t n) {
    auto* out = static_cast<typename Type::Stored*>(row);
    for (std::int64_t i = 0; i < n; ++i) out[i] = Type::stored(y[i]);
  }
  static constexpr RowOps ops() { return {dot, add, widen, narrow}; }
};

}  // namespace

const RowOps& row_ops(Element element, Isa isa) {
  static constexpr RowOps f32 = Portable<F32>::ops();
  static constexpr RowOps bf16 = Portable<Bf16>::ops();
#if defined(__x86_64__)
  static const RowOps f32_avx2 = row_ops_avx2(Element::f32);
  static const RowOps bf16_avx2 = row_ops_avx2(Element::bf16);
  if (isa == Isa::avx2) return element == Element::f32 ? f32_avx2 : bf16_avx2;
#else
  (void)isa;
#endif
  return element == Element::f32 ? f32 : bf16;
}

}  // namespace subspace::kernels
