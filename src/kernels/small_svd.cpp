#include "kernels/small_svd.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/bidiagonal_qr.h"
#include "kernels/largest_entry.h"
#include "kernels/small_svd_body.h"

namespace subspace::kernels {

SvdSteps svd_steps_portable() { return {bidiagonalise, reflect, rotate, bidiagonal_sweeps}; }

namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();
SvdSteps steps_of(Isa isa) {
#if defined(__x86_64__)
  if (isa != Isa::portable) return svd_steps_avx2();
#else
  (void)isa;
#endif
  return svd_steps_portable();
}

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

}  // namespace

double small_svd_tolerance(std::int64_t m, std::int64_t n) {
  return 8 * static_cast<double>(std::max(m, n)) * kEps;
}

bool SmallSvd::decompose(const double* a, std::int64_t m, std::int64_t n, std::int64_t stride) {
  Task task{this, a, m, n, stride};
  decompose(&task, 1);
  return task.done;
}

void SmallSvd::decompose(Task* tasks, std::int64_t count) {
  std::array<Bidiagonal, kAtOnce> matrices;
  std::int64_t started = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    Task& task = tasks[i];
    SmallSvd& own = *task.svd;
    task.done = own.reduce(task.a, task.m, task.n, task.stride);
    if (task.done) {
      matrices[size(started++)] = {own.d_.data(), own.e_.data(), own.q_, &own.left_turns_,
                                   &own.right_turns_};
    }
  }
  if (started > 0) {
    diagonalise(matrices.data(), started, steps_of(tasks[0].svd->isa_).sweep,
                tasks[0].svd->iteration_);
  }
  started = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (tasks[i].done) tasks[i].done = tasks[i].svd->finish(matrices[size(started++)].converged);
  }
}

bool SmallSvd::reduce(const double* a, std::int64_t m, std::int64_t n, std::int64_t stride) {
  turned_ = m < n;
  rows_ = std::max(m, n);
  q_ = std::min(m, n);
  // Not a power of two between rows.
  width_ = whole_packs(q_) + kPack;
  values_.assign(size(q_), 0);
  left_turns_.clear();
  right_turns_.clear();
  d_.assign(size(q_), 0);
  e_.assign(size(q_), 0);
  work_.resize(size(rows_ * width_));
  const double largest = largest_entry(a, m, n, stride);
  if (std::isnan(largest)) {
    std::fill(values_.begin(), values_.end(), std::numeric_limits<double>::quiet_NaN());
    return false;
  }
  // A power of two brings the entries near 1 and changes no bit of them.
  exponent_ = 0;
  std::frexp(largest, &exponent_);
  const double down = std::ldexp(1.0, -exponent_ / 2),
               rest = std::ldexp(1.0, -exponent_ + exponent_ / 2);
  for (std::int64_t i = 0; i < rows_; ++i) {
    double* row = work_.data() + i * width_;
    for (std::int64_t j = 0; j < q_; ++j) {
      row[j] = (turned_ ? a[j * stride + i] : a[i * stride + j]) * down * rest;
    }
    std::fill(row + q_, row + width_, 0.0);
  }
  left_.resize(size(q_ * rows_));
  right_.resize(size(q_ * width_));
  left_tau_.assign(size(q_), 0);
  right_tau_.assign(size(q_), 0);
  row_.resize(size(width_));
  sums_.resize(size(width_));
  if (q_ == 0) return true;
  steps_of(isa_).bidiagonalise({.a = work_.data(),
                                .rows = rows_,
                                .n = q_,
                                .width = width_,
                                .left = left_.data(),
                                .right = right_.data(),
                                .left_tau = left_tau_.data(),
                                .right_tau = right_tau_.data(),
                                .d = d_.data(),
                                .e = e_.data(),
                                .row = row_.data(),
                                .sums = sums_.data()});
  return true;
}

bool SmallSvd::finish(bool converged) {
  if (!converged) {
    std::fill(values_.begin(), values_.end(), std::numeric_limits<double>::quiet_NaN());
    return false;
  }
  order_.resize(size(q_));
  std::iota(order_.begin(), order_.end(), std::int64_t{0});
  std::stable_sort(order_.begin(), order_.end(), [&](std::int64_t x, std::int64_t y) {
    return std::abs(d_[size(x)]) > std::abs(d_[size(y)]);
  });
  for (std::size_t j = 0; j < values_.size(); ++j) {
    values_[j] = std::ldexp(std::abs(d_[size(order_[j])]), exponent_);
  }
  return true;
}

/// Of the image, whose rows are those of U (or V) of what is decomposed.
Reflections SmallSvd::reflections(bool own_left, std::int64_t columns, bool forward) {
  return {.v = (own_left ? left_ : right_).data(),
          .stride = own_left ? rows_ : width_,
          .tau = (own_left ? left_tau_ : right_tau_).data(),
          .n = q_,
          .rows = own_left ? rows_ : q_,
          .skip = own_left ? 0 : 1,
          .x = image_.data(),
          .columns = columns,
          .forward = forward};
}

void SmallSvd::vectors(bool left, std::int64_t count, double* out) {
  const bool own_left = left != turned_;
  const std::int64_t rows = own_left ? rows_ : q_, columns = whole_packs(count);
  image_.assign(size(rows * columns), 0);
  // A negative value's sign goes to V.
  for (std::int64_t j = 0; j < count; ++j) {
    const std::int64_t place = order_[size(j)];
    const double sign = !own_left && std::signbit(d_[size(place)]) ? -1 : 1;
    image_[size(place * columns + j)] = sign;
  }
  const SvdSteps steps = steps_of(isa_);
  const std::vector<Rotation>& turns = own_left ? left_turns_ : right_turns_;
  steps.rotate(turns.data(), static_cast<std::int64_t>(turns.size()), false, image_.data(),
               columns);
  steps.reflect(reflections(own_left, columns, /*forward=*/false));
  for (std::int64_t i = 0; i < rows; ++i) {
    std::copy_n(image_.data() + i * columns, count, out + i * count);
  }
}

void SmallSvd::project(bool left, const double* x, std::int64_t count, double* out) {
  const bool own_left = left != turned_;
  const std::int64_t rows = own_left ? rows_ : q_, columns = whole_packs(count);
  image_.assign(size(rows * columns), 0);
  for (std::int64_t i = 0; i < rows; ++i) {
    std::copy_n(x + i * count, count, image_.data() + i * columns);
  }
  const SvdSteps steps = steps_of(isa_);
  steps.reflect(reflections(own_left, columns, /*forward=*/true));
  const std::vector<Rotation>& turns = own_left ? left_turns_ : right_turns_;
  steps.rotate(turns.data(), static_cast<std::int64_t>(turns.size()), true, image_.data(), columns);
  for (std::int64_t j = 0; j < q_; ++j) {
    const std::int64_t place = order_[size(j)];
    const double sign = !own_left && std::signbit(d_[size(place)]) ? -1 : 1;
    for (std::int64_t c = 0; c < count; ++c) {
      out[j * count + c] = sign * image_[size(place * columns + c)];
    }
  }
}

}  // namespace subspace::kernels
