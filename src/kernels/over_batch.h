#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace subspace::kernels {

/// Calls work(b) once for each b in [0, batch), on at most `threads` threads, this one included.
/// `work` must not throw. Matrices are dealt one at a time, since their costs differ (rank,
/// iterations); which thread gets which never changes a result.
template <typename Work>
void over_batch(std::int64_t batch, int threads, const Work& work) {
  std::atomic<std::int64_t> next{0};
  const auto take = [&] {
    for (std::int64_t b = next++; b < batch; b = next++) work(b);
  };
  std::vector<std::jthread> others;
  const std::int64_t count = std::min<std::int64_t>(threads, batch) - 1;
  for (std::int64_t t = 0; t < count; ++t) others.emplace_back(take);
  take();
}

}  // namespace subspace::kernels
