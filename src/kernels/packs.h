#pragma once

// Compiled once for each instruction set. Everything is in an anonymous namespace and nothing from
// the standard library is a template, so that no copy can leave its object file.

#include <cstdint>

namespace subspace::kernels {
namespace {

/// Four doubles; the compiler splits them where registers hold two.
using Pack = double __attribute__((vector_size(32)));
constexpr std::int64_t kPack = 4;
/// What comparing two of them gives.
using Lanes = std::int64_t __attribute__((vector_size(32)));

/// The same wherever it lies. Copied by memcpy, some compilers move it in halves, and what is then
/// read as a whole waits for both to be in memory.
using LoosePack = double __attribute__((vector_size(32), aligned(8), may_alias));

// Through references, since how a Pack is passed by value depends on the instruction set.
inline void load(Pack& x, const double* from) { x = *reinterpret_cast<const LoosePack*>(from); }
inline void store(double* to, const Pack& x) { *reinterpret_cast<LoosePack*>(to) = x; }
inline double sum_of(const Pack& x) { return (x[0] + x[1]) + (x[2] + x[3]); }

inline std::int64_t whole_packs(std::int64_t n) { return (n + kPack - 1) / kPack * kPack; }

/// x . y of n numbers, whole packs, in kSums (2 or 4) sums at once.
template <int kSums>
inline double packs_dot(const double* x, const double* y, std::int64_t n) {
  Pack sums[kSums] = {}, a, b;
  std::int64_t j = 0;
  for (; j + kSums * kPack <= n; j += kSums * kPack) {
    for (int i = 0; i < kSums; ++i) {
      load(a, x + j + i * kPack);
      load(b, y + j + i * kPack);
      sums[i] += a * b;
    }
  }
  for (; j < n; j += kPack) {
    load(a, x + j);
    load(b, y + j);
    sums[0] += a * b;
  }
  Pack all = sums[0] + sums[1];
  if constexpr (kSums == 4) all += sums[2] + sums[3];
  return sum_of(all);
}

/// Four packs as the rows of a 4 x 4 matrix, turned.
inline void transpose(Pack* x) {
  const Pack a = __builtin_shufflevector(x[0], x[1], 0, 4, 2, 6);
  const Pack b = __builtin_shufflevector(x[0], x[1], 1, 5, 3, 7);
  const Pack c = __builtin_shufflevector(x[2], x[3], 0, 4, 2, 6);
  const Pack d = __builtin_shufflevector(x[2], x[3], 1, 5, 3, 7);
  x[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  x[1] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  x[2] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  x[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

}  // namespace
}  // namespace subspace::kernels
