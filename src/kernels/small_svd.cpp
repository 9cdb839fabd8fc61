#include "kernels/small_svd.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/largest_entry.h"
#include "kernels/small_svd_body.h"

namespace subspace::kernels {

SvdSteps svd_steps_portable() { return {bidiagonalise, reflect, rotate}; }

namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();
/// Sweeps a value; two are usual.
constexpr std::int64_t kMostSweeps = 40;

SvdSteps steps_of(Isa isa) {
#if defined(__x86_64__)
  if (isa != Isa::portable) return svd_steps_avx2();
#else
  (void)isa;
#endif
  return svd_steps_portable();
}

/// c, s with c f + s g = r, c g - s f = 0.
struct Turn {
  double c = 1, s = 0, r = 0;
  Turn(double f, double g) : r(f) {
    if (g == 0) return;
    const double square = f * f + g * g;
    // Below, the squares have lost digits.
    r = square > 1e-290 ? std::sqrt(square) : std::hypot(f, g);
    if (r < std::numeric_limits<double>::min()) {
      r = 0;
      return;
    }
    const double inverse = 1 / r;
    c = f * inverse;
    s = g * inverse;
  }
};

/// The smaller singular value of [f g; 0 h].
double smaller_value(double f, double g, double h) {
  f = std::abs(f), g = std::abs(g), h = std::abs(h);
  const double low = std::min(f, h), high = std::max(f, h);
  if (low == 0) return 0;
  const double ratio = g / high, near = 1 + low / high, apart = (high - low) / high;
  if (g < high) {
    return low * (2 / (std::sqrt(near * near + ratio * ratio) +
                       std::sqrt(apart * apart + ratio * ratio)));
  }
  const double inverse = high / g;
  if (inverse == 0) return low * high / g;
  const double x = near * inverse, y = apart * inverse;
  return 2 * low * inverse / (std::sqrt(1 + x * x) + std::sqrt(1 + y * y));
}

/// Implicit QR on a bidiagonal matrix, one unreduced block [low, high] at a time.
class BidiagonalQr {
 public:
  using Turns = std::vector<SmallSvd::Rotation>;
  BidiagonalQr(std::vector<double>& d, std::vector<double>& e, Turns& left, Turns& right)
      : d_(d), e_(e), left_(left), right_(right) {}

  bool run() {
    const auto n = static_cast<std::int64_t>(d_.size());
    for (const double x : d_) largest_ = std::max(largest_, std::abs(x));
    for (const double x : e_) largest_ = std::max(largest_, std::abs(x));
    std::int64_t sweeps = kMostSweeps * n;
    std::int64_t high = n - 1;
    while (high > 0) {
      std::int64_t low = high;
      if (small(d(high))) d(high) = 0;
      while (low > 0 && !small(e(low - 1))) {
        --low;
        if (small(d(low))) d(low) = 0;
      }
      if (low > 0) e(low - 1) = 0;
      if (low == high) {
        --high;
        continue;
      }
      if (sweeps-- == 0) return false;
      sweep(low, high);
    }
    return true;
  }

 private:
  double& d(std::int64_t i) { return d_[static_cast<std::size_t>(i)]; }
  double& e(std::int64_t i) { return e_[static_cast<std::size_t>(i)]; }
  bool small(double x) const { return std::abs(x) <= kEps * largest_; }

  void sweep(std::int64_t low, std::int64_t high) {
    // From the larger end to the smaller, where values then come to rest; for as long as it is the
    // same block that shrinks, so that no two directions undo each other's work.
    if (low > last_high_ || high < last_low_) down_ = std::abs(d(low)) >= std::abs(d(high));
    last_low_ = low, last_high_ = high;
    const bool down = down_;
    double largest = 0, least = std::abs(d(low));
    for (std::int64_t i = low; i <= high; ++i) {
      largest = std::max(largest, std::abs(d(i)));
      least = std::min(least, std::abs(d(i)));
    }
    double shift = 0;
    if (least > 0) {
      shift = down ? smaller_value(d(high - 1), e(high - 1), d(high))
                   : smaller_value(d(low), e(low), d(low + 1));
      const double start = std::abs(d(down ? low : high));
      if (start == 0 || (shift / start) * (shift / start) < kEps) shift = 0;
    }
    if (shift == 0) {
      down ? plain_down(low, high) : plain_up(low, high);
    } else {
      down ? shifted_down(low, high, shift) : shifted_up(low, high, shift);
    }
  }

  void keep(std::int64_t row, const Turn& right, const Turn& left) {
    right_.push_back({row, right.c, right.s});
    left_.push_back({row, left.c, left.s});
  }
  /// Rotations of a sweep upwards turn rows the other way round.
  void keep_up(std::int64_t row, const Turn& right, const Turn& left) {
    right_.push_back({row, right.c, -right.s});
    left_.push_back({row, left.c, -left.s});
  }

  void plain_down(std::int64_t low, std::int64_t high) {
    double c = 1, old_c = 1, old_s = 0;
    for (std::int64_t i = low; i < high; ++i) {
      const Turn right(d(i) * c, e(i));
      if (i > low) e(i - 1) = old_s * right.r;
      const Turn left(old_c * right.r, d(i + 1) * right.s);
      d(i) = left.r;
      c = right.c, old_c = left.c, old_s = left.s;
      keep(i, right, left);
    }
    const double last = d(high) * c;
    d(high) = last * old_c;
    e(high - 1) = last * old_s;
  }

  void plain_up(std::int64_t low, std::int64_t high) {
    double c = 1, old_c = 1, old_s = 0;
    for (std::int64_t i = high; i > low; --i) {
      const Turn left(d(i) * c, e(i - 1));
      if (i < high) e(i) = old_s * left.r;
      const Turn right(old_c * left.r, d(i - 1) * left.s);
      d(i) = right.r;
      c = left.c, old_c = right.c, old_s = right.s;
      keep_up(i - 1, right, left);
    }
    const double last = d(low) * c;
    d(low) = last * old_c;
    e(low) = last * old_s;
  }

  void shifted_down(std::int64_t low, std::int64_t high, double shift) {
    const double first = d(low);
    double f = (std::abs(first) - shift) * (std::copysign(1.0, first) + shift / first), g = e(low);
    for (std::int64_t i = low; i < high; ++i) {
      const Turn right(f, g);
      if (i > low) e(i - 1) = right.r;
      f = right.c * d(i) + right.s * e(i);
      e(i) = right.c * e(i) - right.s * d(i);
      g = right.s * d(i + 1);
      d(i + 1) = right.c * d(i + 1);
      const Turn left(f, g);
      d(i) = left.r;
      f = left.c * e(i) + left.s * d(i + 1);
      d(i + 1) = left.c * d(i + 1) - left.s * e(i);
      if (i + 1 < high) {
        g = left.s * e(i + 1);
        e(i + 1) = left.c * e(i + 1);
      }
      keep(i, right, left);
    }
    e(high - 1) = f;
  }

  void shifted_up(std::int64_t low, std::int64_t high, double shift) {
    const double first = d(high);
    double f = (std::abs(first) - shift) * (std::copysign(1.0, first) + shift / first);
    double g = e(high - 1);
    for (std::int64_t i = high; i > low; --i) {
      const Turn left(f, g);
      if (i < high) e(i) = left.r;
      f = left.c * d(i) + left.s * e(i - 1);
      e(i - 1) = left.c * e(i - 1) - left.s * d(i);
      g = left.s * d(i - 1);
      d(i - 1) = left.c * d(i - 1);
      const Turn right(f, g);
      d(i) = right.r;
      f = right.c * e(i - 1) + right.s * d(i - 1);
      d(i - 1) = right.c * d(i - 1) - right.s * e(i - 1);
      if (i > low + 1) {
        g = right.s * e(i - 2);
        e(i - 2) = right.c * e(i - 2);
      }
      keep_up(i - 1, right, left);
    }
    e(low) = f;
  }

  std::vector<double>&d_, &e_;
  Turns &left_, &right_;
  double largest_ = 0;
  bool down_ = true;
  std::int64_t last_low_ = std::numeric_limits<std::int64_t>::max(), last_high_ = -1;
};

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

}  // namespace

double small_svd_tolerance(std::int64_t m, std::int64_t n) {
  return 8 * static_cast<double>(std::max(m, n)) * kEps;
}

bool SmallSvd::decompose(const double* a, std::int64_t m, std::int64_t n, std::int64_t stride) {
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
  int exponent = 0;
  std::frexp(largest, &exponent);
  const double down = std::ldexp(1.0, -exponent / 2),
               rest = std::ldexp(1.0, -exponent + exponent / 2);
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
  if (!BidiagonalQr(d_, e_, left_turns_, right_turns_).run()) {
    std::fill(values_.begin(), values_.end(), std::numeric_limits<double>::quiet_NaN());
    return false;
  }
  order_.resize(size(q_));
  std::iota(order_.begin(), order_.end(), std::int64_t{0});
  std::stable_sort(order_.begin(), order_.end(), [&](std::int64_t x, std::int64_t y) {
    return std::abs(d_[size(x)]) > std::abs(d_[size(y)]);
  });
  for (std::size_t j = 0; j < values_.size(); ++j) {
    values_[j] = std::ldexp(std::abs(d_[size(order_[j])]), exponent);
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
