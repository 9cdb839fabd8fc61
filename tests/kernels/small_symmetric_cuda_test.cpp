// The CUDA versions of the small symmetric kernels against the references, on the same matrices.
#ifdef SUBSPACE_CUDA
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "kernels/psd_factor.h"
#include "kernels/symmetric_eigenvalues.h"

namespace subspace::kernels {
namespace {

using Matrices = std::vector<double>;

/// Gram matrices of [n, rank] Gaussians whose columns are scaled by decay^column.
Matrices grams(std::int64_t n, std::int64_t rank, std::int64_t batch, double decay, double scale) {
  Matrices all(static_cast<std::size_t>(batch * n * n));
  for (std::int64_t b = 0; b < batch; ++b) {
    Random random(static_cast<std::uint64_t>(n * 131 + rank), static_cast<std::uint64_t>(b));
    std::vector<double> x(static_cast<std::size_t>(n * rank));
    for (std::int64_t i = 0; i < n * rank; ++i) {
      x[static_cast<std::size_t>(i)] =
          random.normal() * scale * std::pow(decay, static_cast<double>(i % rank));
    }
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (std::int64_t k = 0; k < rank; ++k) {
          sum +=
              x[static_cast<std::size_t>(i * rank + k)] * x[static_cast<std::size_t>(j * rank + k)];
        }
        all[static_cast<std::size_t>((b * n + i) * n + j)] = sum;
      }
    }
  }
  return all;
}

class OnDevice {
 public:
  explicit OnDevice(const Matrices& values) : count_(values.size()) {
    EXPECT_EQ(cudaMalloc(&data_, count_ * sizeof(double)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, values.data(), count_ * sizeof(double), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  ~OnDevice() { cudaFree(data_); }
  OnDevice(const OnDevice&) = delete;
  double* data() const { return data_; }
  Matrices values() const {
    Matrices out(count_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(out.data(), data_, count_ * sizeof(double), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return out;
  }

 private:
  double* data_ = nullptr;
  std::size_t count_;
};

class SmallSymmetricCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "needs a GPU";
    }
    widest_ = symmetric_eigenvalues_cuda_limit();
  }

  void check(std::int64_t n, const Matrices& all) {
    const auto batch = static_cast<std::int64_t>(all.size()) / (n * n);
    Matrices copy = all, expected(static_cast<std::size_t>(batch * n)),
             scratch(static_cast<std::size_t>(batch * 3 * n));
    symmetric_eigenvalues_reference({copy.data(), expected.data(), scratch.data(), n, batch});
    const OnDevice a(all), out(Matrices(expected.size(), std::nan("")));
    symmetric_eigenvalues_cuda({a.data(), out.data(), nullptr, n, batch}, nullptr);
    const Matrices found = out.values();
    for (std::int64_t b = 0; b < batch; ++b) {
      const double* want = expected.data() + b * n;
      const double norm = std::max(std::fabs(want[0]), std::fabs(want[n - 1]));
      for (std::int64_t j = 0; j < n; ++j) {
        const double error = std::fabs(found[static_cast<std::size_t>(b * n + j)] - want[j]);
        ASSERT_TRUE(error <= 2 * eigenvalue_tolerance(n) * norm)
            << "n " << n << " matrix " << b << " value " << j << " error " << error;
      }
    }
    const OnDevice r(Matrices(all.size(), std::nan("")));
    psd_factor_cuda({a.data(), r.data(), nullptr, n, batch}, nullptr);
    const Matrices factors = r.values();
    for (std::int64_t b = 0; b < batch; ++b) {
      double largest = 0, worst = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
          double sum = 0;
          for (std::int64_t k = 0; k < n; ++k) {
            sum += factors[static_cast<std::size_t>((b * n + k) * n + i)] *
                   factors[static_cast<std::size_t>((b * n + k) * n + j)];
          }
          const double want = all[static_cast<std::size_t>((b * n + i) * n + j)];
          largest = std::max(largest, std::fabs(want));
          const double error = std::fabs(sum - want);
          worst = error <= worst ? worst : error;
        }
      }
      ASSERT_TRUE(worst <= 16 * static_cast<double>(n) * 2.3e-16 * largest)
          << "n " << n << " matrix " << b << ": " << worst << " of " << largest;
    }
  }

  std::int64_t widest_ = 0;
};

TEST_F(SmallSymmetricCuda, EqualsTheReference) {
  for (const std::int64_t n :
       {std::int64_t{1}, std::int64_t{2}, std::int64_t{3}, std::int64_t{31}, std::int64_t{32},
        std::int64_t{33}, std::int64_t{64}, std::int64_t{100}, std::int64_t{128}, widest_}) {
    check(n, grams(n, n, 3, 1, 1));
    check(n, grams(n, (n + 1) / 2, 3, 1, 1));
    check(n, grams(n, n, 2, 0.8, 1));
    check(n, grams(n, n, 2, 1, 1e-140));
    check(n, grams(n, n, 2, 1, 1e140));
    check(n, Matrices(static_cast<std::size_t>(2 * n * n), 0.0));
    check(n, Matrices(static_cast<std::size_t>(2 * n * n), 1.0));
  }
}

TEST_F(SmallSymmetricCuda, ManyMatrices) { check(24, grams(24, 24, 3000, 0.9, 1)); }

TEST_F(SmallSymmetricCuda, NotFiniteGivesNaNForThatMatrixOnly) {
  Matrices all = grams(20, 20, 3, 1, 1);
  all[400 + 5 * 20 + 3] = std::numeric_limits<double>::quiet_NaN();
  const OnDevice a(all), out(Matrices(60, 0.0));
  symmetric_eigenvalues_cuda({a.data(), out.data(), nullptr, 20, 3}, nullptr);
  const Matrices found = out.values();
  for (int j = 0; j < 60; ++j)
    EXPECT_EQ(std::isnan(found[static_cast<std::size_t>(j)]), j / 20 == 1);
}

// The kernel's limit of shared memory is one for the process: launches of other sizes at the same
// time must not take it away from each other.
TEST_F(SmallSymmetricCuda, ThreadsLaunchDifferentSizesAtTheSameTime) {
  std::atomic<int> failures = 0;
  std::vector<std::thread> threads;
  for (const std::int64_t n : {std::int64_t{8}, std::int64_t{80}, std::int64_t{128}, widest_}) {
    threads.emplace_back([&failures, n] {
      const Matrices all = grams(n, n, 1, 1, 1);
      const OnDevice a(all), out(Matrices(static_cast<std::size_t>(n), 0.0)), r(all);
      for (int turn = 0; turn < 300; ++turn) {
        try {
          symmetric_eigenvalues_cuda({a.data(), out.data(), nullptr, n, 1}, nullptr);
          psd_factor_cuda({a.data(), r.data(), nullptr, n, 1}, nullptr);
        } catch (const Error&) {
          ++failures;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
}

}  // namespace
}  // namespace subspace::kernels
#endif
