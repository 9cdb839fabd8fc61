#pragma once

#include <cstdint>
#include <span>

namespace subspace {

/// The streams of the counter-based generator (base/random.h) that data uses: the high half of
/// Philox's counter is `stream << 56 | n`, n < 2^56, so that no two uses of one seed share numbers.
enum class RandomStream : std::uint64_t { SampleOrder = 1, Masking = 2 };

/// A permutation of 0 .. size-1 without a table: the value at any place costs a handful of Philox
/// blocks (about 0.2 us), memory is none.
///
///   a Feistel network of 8 rounds over the smallest 2^b >= size, b = l + r bits, l = b / 2:
///     left ^= F(round, right) mod 2^l,  right ^= F(round + 1, left) mod 2^r, ...
///   with F from philox(seed, round << 32 | half, stream << 56 | epoch); results >= size are put in
///   again ("cycle walking", below 2 turns on average), which makes it a permutation of the range.
///
/// Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002; theirs walks
/// the same way, with a block cipher.
class Permutation {
 public:
  /// `size` from 1 to 2^62. Another `epoch` is another permutation.
  Permutation(std::uint64_t size, std::uint64_t seed, std::uint64_t epoch);
  /// Where `place` < size goes. Throws Internal for another place.
  std::uint64_t operator()(std::uint64_t place) const;

 private:
  std::uint64_t turn(std::uint64_t value) const;

  std::uint64_t size_;
  std::uint64_t seed_;
  std::uint64_t epoch_;
  int left_bits_;
  int right_bits_;
};

/// Which row the k-th sample of a run is: row permutation(seed, epoch = k / rows)(k mod rows).
/// Every row comes once an epoch; a batch may span two. Depends on (rows, seed, k) alone.
class SampleOrder {
 public:
  SampleOrder(std::int64_t rows, std::uint64_t seed) : rows_(rows), seed_(seed) {}
  std::int64_t row(std::uint64_t sample) const;
  /// Rows of samples `first .. first + out.size() - 1`: step n of a run with batches of B takes
  /// first = n B.
  void rows(std::uint64_t first, std::span<std::int64_t> out) const;

 private:
  std::int64_t rows_;
  std::uint64_t seed_;
};

}  // namespace subspace
