#pragma once

#include <bit>
#include <cstdint>

namespace subspace::kernels {

/// Storage of the large operands of a trained layer. Sums are float32 whatever the storage.
enum class Element { f32, bf16 };

constexpr std::int64_t element_bytes(Element element) { return element == Element::f32 ? 4 : 2; }

inline float bf16_value(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

/// Round to nearest, ties to even; NaN stays NaN.
inline std::uint16_t bf16_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace subspace::kernels
