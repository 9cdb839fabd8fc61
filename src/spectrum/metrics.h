#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace subspace {

/// What a spectrum s_1 >= s_2 >= ... >= 0 says, with energy E = sum s_j^2.
struct Metrics {
  double largest = 0;  ///< s_1
  std::vector<std::int64_t>
      effective_rank;               ///< for each tau: smallest r, sum_{j<=r} s_j^2 >= tau E
  std::vector<double> energy_lost;  ///< for each stated rank r: 1 - sum_{j<=r} s_j^2 / E
  double stable_rank = 0;           ///< E / s_1^2
  double entropy_rank = 0;          ///< exp(-sum p_j ln p_j), p_j = s_j^2 / E
  double participation_ratio = 0;   ///< E^2 / sum s_j^4
  double condition_number = 0;      ///< s_1 / s_n; infinity where s_n is below the floor
};

/// Singular values below this part of the largest are not resolved by the Gram route.
inline constexpr double kAccuracyFloor = 1e-8;

/// O(n). A zero spectrum has ranks 0, no energy lost and condition number infinity. Throws
/// InvalidValue unless the values are finite, >= 0 and descending.
Metrics spectrum_metrics(std::span<const double> values, std::span<const double> taus,
                         std::span<const std::int64_t> ranks);

}  // namespace subspace
