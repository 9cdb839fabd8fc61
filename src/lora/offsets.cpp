#include "lora/offsets.h"

#include <ATen/ATen.h>

#include <numbers>

namespace subspace {
namespace {

at::Tensor block(const at::Tensor& gram, const at::Tensor& rows, const at::Tensor& columns) {
  return gram.index_select(-2, rows).index_select(-1, columns);
}

at::Tensor flat(const at::Tensor& x) { return x.flatten(-2, -1); }

at::Tensor indices(const std::vector<std::int64_t>& list, const at::Device& device) {
  return at::tensor(list, at::kLong).to(device);
}

}  // namespace

Offsets::Offsets(const Rotary& rotary, std::int64_t k, std::vector<std::int64_t> offsets,
                 const at::Device& device)
    : offsets_(std::move(offsets)) {
  const bool rotates = rotary.layout != Rotary::Layout::none;
  planes_ = rotates ? rotary.dims / 2 : 0;
  rest_ = k - 2 * planes_;
  scale_ = rotates ? rotary.scale * rotary.scale : 1;
  const bool half = rotary.layout == Rotary::Layout::half;
  std::vector<std::int64_t> first, second, others;
  for (std::int64_t f = 0; f < planes_; ++f) {
    first.push_back(rotary.begin + (half ? f : 2 * f));
    second.push_back(rotary.begin + (half ? planes_ + f : 2 * f + 1));
  }
  for (std::int64_t j = 0; j < k; ++j) {
    const bool turned = j >= rotary.begin && j < rotary.begin + 2 * planes_;
    if (planes_ == 0 || !turned) others.push_back(j);
  }
  first_ = indices(first, device);
  second_ = indices(second, device);
  others_ = indices(others, device);
  const auto options = at::TensorOptions().dtype(at::kDouble).device(device);
  const std::vector<double> no_frequencies;
  const at::Tensor theta =
      at::tensor(rotates ? rotary.frequencies : no_frequencies, at::kDouble).to(device);
  const at::Tensor across = theta.unsqueeze(1).expand({planes_, rest_}).reshape(-1);
  const at::Tensor along = theta.unsqueeze(0).expand({rest_, planes_}).reshape(-1);
  const at::Tensor angles = at::cat({(theta.unsqueeze(1) - theta).reshape(-1),
                                     (theta.unsqueeze(1) + theta).reshape(-1), across, along});
  const at::Tensor factors = at::cat({at::full({2 * planes_ * planes_}, scale_ * scale_, options),
                                      at::full({2 * planes_ * rest_}, scale_, options)});
  const at::Tensor steps = at::tensor(offsets_, at::kLong).to(device).to(at::kDouble);
  const at::Tensor table = angles.unsqueeze(1) * steps;
  cos_ = table.cos() * factors.unsqueeze(1);
  sin_ = table.sin() * factors.unsqueeze(1);
  mean_cos_ = cos_.mean(1);
  mean_sin_ = sin_.mean(1);
}

at::Tensor Offsets::vectors(const at::Tensor& gram) const {
  if (planes_ == 0) return flat(gram);
  const at::Tensor a = block(gram, first_, first_), b = block(gram, first_, second_);
  const at::Tensor c = block(gram, second_, first_), d = block(gram, second_, second_);
  const double half = std::numbers::sqrt2 / 2;
  std::vector<at::Tensor> real = {flat(a + d) * half, flat(a - d) * half};
  std::vector<at::Tensor> imaginary = {flat(b - c) * half, flat(b + c) * -half};
  if (rest_ > 0) {
    // [x; y] of a plane against an unrotated coordinate is x - i y, on either side.
    real.push_back(flat(block(gram, first_, others_)));
    imaginary.push_back(-flat(block(gram, second_, others_)));
    real.push_back(flat(block(gram, others_, first_)));
    imaginary.push_back(-flat(block(gram, others_, second_)));
    imaginary.push_back(flat(block(gram, others_, others_)));
  }
  real.insert(real.end(), imaginary.begin(), imaginary.end());
  return at::cat(real, -1);
}

at::Tensor Offsets::mean_rotated(const at::Tensor& vectors) const {
  const std::int64_t n = complex_count();
  if (n == 0) return vectors;
  const at::Tensor real = vectors.narrow(-1, 0, n), imaginary = vectors.narrow(-1, n, n);
  return at::cat(
      {real * mean_cos_ - imaginary * mean_sin_, real * mean_sin_ + imaginary * mean_cos_,
       vectors.narrow(-1, 2 * n, rest_ * rest_)},
      -1);
}

at::Tensor Offsets::at_each(const at::Tensor& x, const at::Tensor& y) const {
  const std::int64_t n = complex_count();
  const auto part = [&](const at::Tensor& v, std::int64_t begin) { return v.narrow(-1, begin, n); };
  const at::Tensor cosines = part(x, 0) * part(y, 0) + part(x, n) * part(y, n);
  const at::Tensor sines = part(x, n) * part(y, 0) - part(x, 0) * part(y, n);
  const at::Tensor still =
      (x.narrow(-1, 2 * n, rest_ * rest_) * y.narrow(-1, 2 * n, rest_ * rest_)).sum(-1, true);
  return at::matmul(cosines, cos_) + at::matmul(sines, sin_) + still;
}

at::Tensor Offsets::by_frequency(const at::Tensor& x, const at::Tensor& y) const {
  const std::int64_t n = complex_count(), square = planes_ * planes_;
  // <z, z'> of a plane with itself, where the angle is zero.
  const auto with_itself = [&](const at::Tensor& v, std::int64_t begin) {
    return planes_ == 0 ? v.narrow(-1, 0, 0)
                        : v.narrow(-1, begin, square).slice(-1, 0, square, planes_ + 1);
  };
  const at::Tensor planes =
      (with_itself(x, 0) * with_itself(y, 0) + with_itself(x, n) * with_itself(y, n)) *
      (scale_ * scale_);
  const at::Tensor still =
      (x.narrow(-1, 2 * n, rest_ * rest_) * y.narrow(-1, 2 * n, rest_ * rest_)).sum(-1, true);
  return at::cat({planes, still}, -1);
}

}  // namespace subspace
