#include "base/random.h"

#include <cmath>
#include <numbers>

namespace subspace {

std::array<std::uint32_t, 4> philox(std::uint64_t key, std::uint64_t counter_low,
                                    std::uint64_t counter_high) {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53;
  constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9;
  constexpr std::uint32_t kWeyl1 = 0xBB67AE85;
  auto low32 = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
  auto high32 = [](std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); };

  std::array<std::uint32_t, 4> counter = {low32(counter_low), high32(counter_low),
                                          low32(counter_high), high32(counter_high)};
  std::uint32_t key0 = low32(key);
  std::uint32_t key1 = high32(key);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = kMultiplier0 * counter[0];
    const std::uint64_t product1 = kMultiplier1 * counter[2];
    counter = {high32(product1) ^ counter[1] ^ key0, low32(product1),
               high32(product0) ^ counter[3] ^ key1, low32(product0)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

std::uint32_t Random::word() {
  if (left_ == 0) {
    words_ = philox(seed_, block_++, stream_);
    left_ = 4;
  }
  return words_[static_cast<std::size_t>(4 - left_--)];
}

double Random::uniform() {
  const std::uint64_t high = word();
  const std::uint64_t bits = (high << 32 | word()) >> 11;
  return (static_cast<double>(bits) + 0.5) * 0x1p-53;
}

double Random::normal() {
  if (has_spare_) {
    has_spare_ = false;
    return spare_;
  }
  const double radius = std::sqrt(-2 * std::log(uniform()));
  const double angle = 2 * std::numbers::pi * uniform();
  spare_ = radius * std::sin(angle);
  has_spare_ = true;
  return radius * std::cos(angle);
}

}  // namespace subspace
