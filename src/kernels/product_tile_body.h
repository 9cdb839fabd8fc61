#pragma once

// Compiled once for each instruction set. Everything is in an anonymous namespace and nothing comes
// from the standard library, so that no copy can leave its object file.

#include "kernels/product_tile.h"

// Compilers put an array that a loop runs over in memory, unless they unroll the loop early.
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 32")
#endif

namespace subspace::kernels {
namespace {

/// kRows x (kPacks packs of kWidth doubles). Rows of C lie in the registers: each value of A is
/// broadcast and meets whole packs of B.
template <int kRows, int kPacks, int kWidth>
struct Tile {
  typedef double Pack __attribute__((vector_size(kWidth * sizeof(double))));
  /// The same at any address.
  typedef double Stored
      __attribute__((vector_size(kWidth * sizeof(double)), aligned(sizeof(double)), may_alias));
  static constexpr int kCols = kPacks * kWidth;

  static void run(std::int64_t k, const double* a, const double* b, double* c, std::int64_t stride,
                  double alpha, double beta) {
    // C comes from memory while the sums are made.
    for (int i = 0; i < kRows; ++i) {
      __builtin_prefetch(c + i * stride, 1);
      __builtin_prefetch(c + i * stride + kCols - 1, 1);
    }
    Pack sum[kRows * kPacks];
    UNROLLED for (int i = 0; i < kRows * kPacks; ++i) sum[i] = Pack{};
    for (std::int64_t p = 0; p < k; ++p, a += kRows, b += kCols) {
      Pack right[kPacks];
      UNROLLED for (int j = 0; j < kPacks; ++j) {
        right[j] = *reinterpret_cast<const Stored*>(b + j * kWidth);
      }
      UNROLLED for (int i = 0; i < kRows * kPacks; ++i) sum[i] += a[i / kPacks] * right[i % kPacks];
    }
    UNROLLED for (int i = 0; i < kRows * kPacks; ++i) {
      Stored* to = reinterpret_cast<Stored*>(c + i / kPacks * stride + i % kPacks * kWidth);
      Pack scaled = alpha * sum[i];
      if (beta != 0) scaled += beta * *to;
      *to = scaled;
    }
  }

  static constexpr ProductTile tile() { return {kRows, kCols, run}; }
};

}  // namespace
}  // namespace subspace::kernels

#undef UNROLLED
