#include "spectrum/metrics.h"

#include <cmath>
#include <limits>

#include "base/error.h"

namespace subspace {

Metrics spectrum_metrics(std::span<const double> values, std::span<const double> taus,
                         std::span<const std::int64_t> ranks) {
  for (std::size_t j = 0; j < values.size(); ++j) {
    if (!(values[j] >= 0 && std::isfinite(values[j])) || (j > 0 && values[j] > values[j - 1])) {
      fail(ErrorCode::InvalidValue, "singular value {} is {}; expected finite, >= 0, descending", j,
           values[j]);
    }
  }
  Metrics m;
  m.effective_rank.assign(taus.size(), 0);
  m.energy_lost.assign(ranks.size(), 0);
  m.condition_number = std::numeric_limits<double>::infinity();
  if (values.empty() || values[0] == 0) return m;

  // Relative to the largest, so that squares neither overflow nor vanish. Summed from the smallest
  // up: tail[r] = sum_{j > r} is then as accurate for small losses as the values are.
  const std::size_t n = values.size();
  m.largest = values[0];
  std::vector<double> tail(n + 1, 0);
  double fourth = 0;
  for (std::size_t j = n; j-- > 0;) {
    const double energy = (values[j] / m.largest) * (values[j] / m.largest);
    tail[j] = tail[j + 1] + energy;
    fourth += energy * energy;
  }
  const double total = tail[0];
  for (std::size_t t = 0; t < taus.size(); ++t) {
    std::size_t r = 0;
    while (r < n && total - tail[r] < taus[t] * total) ++r;
    m.effective_rank[t] = static_cast<std::int64_t>(r);
  }
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    const auto r = static_cast<std::size_t>(std::max<std::int64_t>(ranks[i], 0));
    m.energy_lost[i] = r < n ? tail[r] / total : 0;
  }
  double entropy = 0;
  for (const double value : values) {
    const double p = (value / m.largest) * (value / m.largest) / total;
    if (p > 0) entropy -= p * std::log(p);
  }
  m.stable_rank = total;
  m.entropy_rank = std::exp(entropy);
  m.participation_ratio = total * total / fourth;
  if (values[n - 1] > kAccuracyFloor * m.largest) m.condition_number = m.largest / values[n - 1];
  return m;
}

}  // namespace subspace
