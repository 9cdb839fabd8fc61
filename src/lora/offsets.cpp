#include "lora/offsets.h"

#include <ATen/ATen.h>

#include <cmath>

namespace subspace {

/// Means over some offsets of cosines and sines of the planes' angles a, and of their products.
struct Offsets::Planes {
  at::Tensor cos, sin;        // [planes]
  at::Tensor cc, ss, sc, cs;  // [planes, planes]: of sc the first is the sine

  Planes(const std::vector<double>& frequencies, const std::vector<std::int64_t>& offsets) {
    const at::Tensor theta = at::tensor(frequencies, at::kDouble);
    const at::Tensor angles =
        theta.unsqueeze(1) * at::tensor(offsets, at::kLong).to(at::kDouble);  // [planes, offsets]
    const at::Tensor c = angles.cos(), s = angles.sin();
    const auto count = static_cast<double>(offsets.size());
    cos = c.mean(1), sin = s.mean(1);
    cc = at::matmul(c, c.t()) / count, ss = at::matmul(s, s.t()) / count;
    sc = at::matmul(s, c.t()) / count, cs = sc.t().contiguous();
  }
};

Offsets::Offsets(const Rotary& rotary, std::int64_t k, const std::vector<std::int64_t>& window,
                 const std::vector<std::int64_t>& curve)
    : curve_(static_cast<std::int64_t>(curve.size())) {
  const bool rotates = rotary.layout != Rotary::Layout::none;
  planes_ = rotates ? rotary.dims / 2 : 0;
  rest_ = k - 2 * planes_;
  if (!rotates) return;
  scale_ = rotary.scale * rotary.scale;
  const bool half = rotary.layout == Rotary::Layout::half;
  for (const std::int64_t second : {0, 1}) {
    for (std::int64_t f = 0; f < planes_; ++f) {
      order_.push_back(rotary.begin + (half ? f + second * planes_ : 2 * f + second));
    }
  }
  for (std::int64_t j = 0; j < k; ++j) {
    if (j < rotary.begin || j >= rotary.begin + 2 * planes_) order_.push_back(j);
  }
  bool as_they_stand = true;
  for (std::int64_t j = 0; j < k; ++j) as_they_stand &= order_[static_cast<std::size_t>(j)] == j;
  if (as_they_stand) order_.clear();

  const auto numbers = static_cast<std::size_t>(kernels::turn_numbers(planes_, rest_));
  mean_cos_.assign(numbers, 0), mean_sin_.assign(numbers, 0);
  fill(Planes(rotary.frequencies, window), mean_cos_.data(), mean_sin_.data());
  cos_.assign(curve.size() * numbers, 0), sin_.assign(curve.size() * numbers, 0);
  for (std::size_t i = 0; i < curve.size(); ++i) {
    fill(Planes(rotary.frequencies, {curve[i]}), cos_.data() + i * numbers,
         sin_.data() + i * numbers);
  }
}

void Offsets::fill(const Planes& of, double* cosines, double* sines) const {
  const double twice = scale_ * scale_;
  const auto at = [this](const at::Tensor& x, std::int64_t f, std::int64_t g) {
    return x.const_data_ptr<double>()[f * planes_ + g];
  };
  const double *cos = of.cos.const_data_ptr<double>(), *sin = of.sin.const_data_ptr<double>();
  const std::int64_t row = kernels::turn_row(planes_, rest_);
  for (std::int64_t f = 0; f < planes_; ++f) {
    double *c = cosines + f * row, *s = sines + f * row;
    for (std::int64_t g = 0; g < planes_; ++g) {
      c[g] = twice * (at(of.cc, f, g) + at(of.ss, f, g));
      s[g] = twice * (at(of.sc, f, g) - at(of.cs, f, g));
      c[planes_ + g] = twice * (at(of.cc, f, g) - at(of.ss, f, g));
      s[planes_ + g] = twice * (at(of.sc, f, g) + at(of.cs, f, g));
    }
    for (std::int64_t o = 0; o < rest_; ++o) {
      c[2 * planes_ + o] = scale_ * cos[f];
      s[2 * planes_ + o] = scale_ * sin[f];
    }
  }
  for (std::int64_t o = 0; o < rest_; ++o) {
    const std::int64_t begin = planes_ * row + o * kernels::turn_row_of_rest(planes_);
    for (std::int64_t g = 0; g < planes_; ++g) {
      cosines[begin + g] = scale_ * cos[g];
      sines[begin + g] = scale_ * sin[g];
    }
  }
}

at::Tensor Offsets::ordered(const at::Tensor& x) const {
  return order_.empty() ? x : x.index_select(-1, at::tensor(order_, at::kLong));
}

kernels::TurnTables Offsets::tables() const {
  return {.planes = planes_,
          .rest = rest_,
          .mean_cos = mean_cos_.data(),
          .mean_sin = mean_sin_.data(),
          .cos = cos_.data(),
          .sin = sin_.data(),
          .offsets = curve_,
          .still = scale_ * scale_};
}

}  // namespace subspace
