// Rows of float32 or bfloat16 in plain loops on the CPU: one value at a time, sums in float32.
#pragma once

#include "kernels/element.h"

namespace subspace::kernels {

/// Values of one storage type at a pointer.
template <Element kElement>
struct Values;

template <>
struct Values<Element::f32> {
  static float load(const void* at, std::int64_t i) { return static_cast<const float*>(at)[i]; }
  static void store(void* at, std::int64_t i, float value) { static_cast<float*>(at)[i] = value; }
  static float rounded(float value) { return value; }
};

template <>
struct Values<Element::bf16> {
  static float load(const void* at, std::int64_t i) {
    return bf16_value(static_cast<const std::uint16_t*>(at)[i]);
  }
  static void store(void* at, std::int64_t i, float value) {
    static_cast<std::uint16_t*>(at)[i] = bf16_bits(value);
  }
  static float rounded(float value) { return bf16_value(bf16_bits(value)); }
};

}  // namespace subspace::kernels
