#include "data/permutation.h"

#include <bit>

#include "base/error.h"
#include "base/random.h"

namespace subspace {
namespace {

constexpr std::uint64_t kRounds = 8;

std::uint64_t low_bits(std::uint64_t value, int bits) {
  return value & ((std::uint64_t{1} << bits) - 1);
}

}  // namespace

Permutation::Permutation(std::uint64_t size, std::uint64_t seed, std::uint64_t epoch)
    : size_(size), seed_(seed), epoch_(epoch) {
  if (size == 0 || size > std::uint64_t{1} << 62) {
    fail(ErrorCode::Internal, "a permutation of {} values", size);
  }
  const int bits = static_cast<int>(std::bit_width(size - 1));
  left_bits_ = bits / 2;
  right_bits_ = bits - left_bits_;
}

std::uint64_t Permutation::turn(std::uint64_t value) const {
  const std::uint64_t stream = static_cast<std::uint64_t>(RandomStream::SampleOrder) << 56 | epoch_;
  std::uint64_t right = low_bits(value, right_bits_);
  std::uint64_t left = value >> right_bits_;
  for (std::uint64_t round = 0; round < kRounds; round += 2) {
    left ^= low_bits(philox(seed_, round << 32 | right, stream)[0], left_bits_);
    right ^= low_bits(philox(seed_, (round + 1) << 32 | left, stream)[0], right_bits_);
  }
  return left << right_bits_ | right;
}

std::uint64_t Permutation::operator()(std::uint64_t place) const {
  if (place >= size_) fail(ErrorCode::Internal, "place {} of a permutation of {}", place, size_);
  do place = turn(place);
  while (place >= size_);
  return place;
}

std::int64_t SampleOrder::row(std::uint64_t sample) const {
  const auto rows = static_cast<std::uint64_t>(rows_);
  return static_cast<std::int64_t>(Permutation(rows, seed_, sample / rows)(sample % rows));
}

void SampleOrder::rows(std::uint64_t first, std::span<std::int64_t> out) const {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = row(first + i);
}

}  // namespace subspace
