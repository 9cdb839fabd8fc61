#include "kernels/band_to_tridiagonal.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/band_step_body.h"

namespace subspace::kernels {
namespace {

/// Sweeps that one thread carries down the band together, so that what one has touched is still in
/// the second-level cache for the next.
constexpr std::int64_t kGroup = 6;

/// The sweeps of one matrix. Sweep s clears column s; its step t works on the `width` rows from
/// s + 1 + t width on, and on the block below them. It may go once sweep s - 1 is past step t + 1.
class Sweeps {
 public:
  Sweeps(const BandToTridiagonal& p, Isa isa)
      : p_(p),
        step_(isa == Isa::avx2 ? band_step_avx2 : band_step_portable),
        sweeps_(std::max<std::int64_t>(p.n - 2, 0)),
        groups_((sweeps_ + kGroup - 1) / kGroup),
        taken_(std::make_unique<std::atomic<std::int64_t>[]>(static_cast<std::size_t>(groups_))) {}

  void run(std::int64_t threads) {
    const auto deal = [&](std::int64_t first) {
      std::vector<double> work(static_cast<std::size_t>((kGroup + 2) * p_.width));
      for (std::int64_t g = first; g < groups_; g += threads) group(g, work.data());
    };
    std::vector<std::jthread> others;
    for (std::int64_t t = 1; t < threads; ++t) others.emplace_back([&, t] { deal(t); });
    deal(0);
  }

 private:
  std::int64_t steps(std::int64_t s) const { return (p_.n - 1 - s + p_.width - 1) / p_.width; }

  void group(std::int64_t g, double* work) {
    const std::int64_t first = g * kGroup;
    const std::int64_t count = std::min(kGroup, sweeps_ - first);
    double tau[kGroup] = {};
    for (std::int64_t p = 0; p < steps(first) + count - 1; ++p) {
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t s = first + r, t = p - r;
        if (t < 0 || t >= steps(s)) continue;
        if (r == 0 && g > 0) wait_for(g - 1, std::min(t + 2, steps(first - 1)));
        tau[r] = step_({.band = p_.band,
                        .n = p_.n,
                        .width = p_.width,
                        .row = s + 1 + t * p_.width,
                        .first = t == 0,
                        .v = work + (r + 2) * p_.width,
                        .tau = tau[r],
                        .w = work,
                        .next = work + p_.width});
        if (r == count - 1) {
          taken_[static_cast<std::size_t>(g)].store(t + 1, std::memory_order_release);
        }
      }
    }
  }

  void wait_for(std::int64_t g, std::int64_t steps) const {
    const auto& taken = taken_[static_cast<std::size_t>(g)];
    for (int spins = 0; taken.load(std::memory_order_acquire) < steps; ++spins) {
      if (spins > 1000) std::this_thread::yield();
    }
  }

  const BandToTridiagonal& p_;
  double (*step_)(const BandStep&);
  std::int64_t sweeps_, groups_;
  /// Steps that the last sweep of each group has taken.
  std::unique_ptr<std::atomic<std::int64_t>[]> taken_;
};

}  // namespace

double band_step_portable(const BandStep& step) { return band_step(step); }

void band_to_tridiagonal_cpu(const BandToTridiagonal& p, int threads, Isa isa) {
  // A thread waits for the one before it unless the band is many steps long.
  const std::int64_t useful = p.n / (4 * kGroup * p.width) + 1;
  Sweeps(p, isa).run(std::min<std::int64_t>(threads, useful));
  for (std::int64_t j = 0; j < p.n; ++j) {
    p.d[j] = p.band[j * 2 * p.width];
    if (j + 1 < p.n) p.e[j] = p.band[j * 2 * p.width + 1];
  }
}

void band_to_tridiagonal_reference(const BandToTridiagonal& p) {
  const std::int64_t n = p.n;
  std::vector<double> a(static_cast<std::size_t>(n * n));
  const auto at = [&](std::int64_t i, std::int64_t j) -> double& {
    return a[static_cast<std::size_t>(i * n + j)];
  };
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t i = j; i < std::min(n, j + p.width + 1); ++i) {
      at(i, j) = at(j, i) = p.band[j * 2 * p.width + i - j];
    }
  }
  for (std::int64_t j = 0; j + 2 < n; ++j) {
    for (std::int64_t i = n - 1; i > j + 1; --i) {
      // Rows and columns i - 1, i turn so that (i, j) vanishes.
      const double r = std::hypot(at(i - 1, j), at(i, j));
      if (at(i, j) == 0) continue;
      const double c = at(i - 1, j) / r, s = at(i, j) / r;
      for (std::int64_t k = 0; k < n; ++k) {
        const double x = at(i - 1, k), y = at(i, k);
        at(i - 1, k) = c * x + s * y;
        at(i, k) = c * y - s * x;
      }
      for (std::int64_t k = 0; k < n; ++k) {
        const double x = at(k, i - 1), y = at(k, i);
        at(k, i - 1) = c * x + s * y;
        at(k, i) = c * y - s * x;
      }
    }
  }
  for (std::int64_t j = 0; j < n; ++j) {
    p.d[j] = at(j, j);
    if (j + 1 < n) p.e[j] = at(j + 1, j);
  }
}

}  // namespace subspace::kernels
