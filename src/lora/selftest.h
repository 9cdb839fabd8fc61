#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace subspace {

/// One property of the algebra, checked on random small cases against matrices multiplied out.
struct Property {
  std::string id;  ///< "P1" .. as in docs/lora.md
  std::string title;
  double tolerance = 0;
  /// The largest error on the case of a seed, relative to the largest element compared; for exact
  /// and one-sided properties 0 or the amount of the violation. Never NaN for a NaN: that is
  /// infinity.
  std::function<double(std::uint64_t seed)> error;
};

/// P1 .. P22, in order. Cases are at most 64 wide; a seed takes milliseconds. P22 writes and
/// removes small files in the system's folder for temporary ones.
const std::vector<Property>& properties();

struct PropertyResult {
  const Property* property = nullptr;
  double error = 0;
  std::int64_t cases = 0;
  bool passed = false;
};
PropertyResult check(const Property& property, std::int64_t cases, std::uint64_t first_seed = 1);

}  // namespace subspace
