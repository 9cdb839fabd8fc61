#pragma once

#include <array>
#include <cstdint>

namespace subspace {

/// Counter-based random numbers: the n-th block depends on (seed, stream, n) alone, so that any
/// part of a sequence can be made by any thread, in any order, again.
///
/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four
/// uniform 32-bit words for a 64-bit key and a 128-bit counter.
std::array<std::uint32_t, 4> philox(std::uint64_t key, std::uint64_t counter_low,
                                    std::uint64_t counter_high);

/// Sequential access to one stream of such numbers, from any block on: one block is two uniform or
/// two normal numbers.
class Random {
 public:
  explicit Random(std::uint64_t seed, std::uint64_t stream = 0, std::uint64_t block = 0)
      : seed_(seed), stream_(stream), block_(block) {}

  /// Uniform 32-bit word.
  std::uint32_t word();
  /// Uniform in (0, 1), 53 bits, never 0 or 1.
  double uniform();
  /// Standard normal (Box-Muller; both values used).
  double normal();

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t block_;
  std::array<std::uint32_t, 4> words_{};
  int left_ = 0;
  double spare_ = 0;
  bool has_spare_ = false;
};

}  // namespace subspace
