#include "lora/rope_mean.h"

#include <ATen/ATen.h>

#include "base/error.h"

namespace subspace {
namespace {

/// Coordinates of a head in the order first elements of pairs, second elements: those that are not
/// rotated are paired as they come, with frequency zero.
struct Pairs {
  std::vector<std::int64_t> first, second;
  std::vector<double> frequencies, scales;

  void add(std::int64_t a, std::int64_t b, double frequency, double scale) {
    first.push_back(a);
    second.push_back(b);
    frequencies.push_back(frequency);
    scales.push_back(scale);
  }
};

Pairs pairs_of(const Rotary& rotary, std::int64_t width) {
  Pairs pairs;
  const std::int64_t half = rotary.dims / 2;
  for (std::int64_t f = 0; f < half; ++f) {
    const bool halves = rotary.layout == Rotary::Layout::half;
    const std::int64_t a = rotary.begin + (halves ? f : 2 * f);
    pairs.add(a, halves ? a + half : a + 1, rotary.frequencies[static_cast<std::size_t>(f)],
              rotary.scale * rotary.scale);
  }
  std::vector<std::int64_t> rest;
  for (std::int64_t i = 0; i < width; ++i) {
    if (i < rotary.begin || i >= rotary.begin + rotary.dims) rest.push_back(i);
  }
  // An odd one is paired with a coordinate behind the last, which is always zero.
  if (rest.size() % 2 != 0) rest.push_back(width);
  for (std::size_t i = 0; i < rest.size(); i += 2) pairs.add(rest[i], rest[i + 1], 0, 1);
  return pairs;
}

}  // namespace

RopeMean::RopeMean(const Rotary& rotary, std::int64_t width,
                   const std::vector<std::int64_t>& offsets)
    : width_(width) {
  if (offsets.empty()) fail(ErrorCode::InvalidValue, "no offsets to average over");
  if (rotary.layout == Rotary::Layout::none) return;
  turns_ = offsets.size() > 1 || offsets.front() != 0 || rotary.scale != 1;
  if (!turns_) return;
  Pairs pairs = pairs_of(rotary, width);
  std::vector<std::int64_t> order = pairs.first;
  order.insert(order.end(), pairs.second.begin(), pairs.second.end());
  order_ = at::tensor(order, at::kLong);
  back_ = at::argsort(order_).narrow(0, 0, width);
  const at::Tensor theta = at::tensor(pairs.frequencies, at::kDouble);
  const at::Tensor sum = theta.unsqueeze(1) + theta, difference = theta.unsqueeze(1) - theta;
  cos_sum_ = at::zeros_like(sum);
  sin_sum_ = at::zeros_like(sum);
  cos_difference_ = at::zeros_like(sum);
  sin_difference_ = at::zeros_like(sum);
  for (const std::int64_t offset : offsets) {
    const auto delta = static_cast<double>(offset);
    cos_sum_ += (sum * delta).cos();
    sin_sum_ += (sum * delta).sin();
    cos_difference_ += (difference * delta).cos();
    sin_difference_ += (difference * delta).sin();
  }
  for (at::Tensor* table : {&cos_sum_, &sin_sum_, &cos_difference_, &sin_difference_}) {
    table->div_(static_cast<double>(offsets.size()));
  }
  const at::Tensor scale = at::tensor(pairs.scales, at::kDouble);
  scale_ = at::cat({scale, scale});
}

at::Tensor RopeMean::turned(const at::Tensor& gram, double sign) const {
  if (!turns_) return gram;
  const at::Tensor padded =
      order_.size(0) == width_ ? gram : at::constant_pad_nd(gram, {0, 1, 0, 1});
  const at::Tensor g = padded.index_select(-2, order_).index_select(-1, order_);
  const std::int64_t n = order_.size(0) / 2;
  auto block = [&](std::int64_t row, std::int64_t column) {
    return g.narrow(-2, row * n, n).narrow(-1, column * n, n);
  };
  const at::Tensor aa = block(0, 0), ab = block(0, 1), ba = block(1, 0), bb = block(1, 1);
  // u turns by e^{-i sign (sum)}, w by e^{+i sign (difference of row's and column's)}.
  const at::Tensor u_re = aa - bb, u_im = ab + ba, w_re = aa + bb, w_im = ab - ba;
  const at::Tensor u_cos = cos_sum_, u_sin = sin_sum_ * -sign;
  const at::Tensor w_cos = cos_difference_, w_sin = sin_difference_ * sign;
  const at::Tensor ur = u_re * u_cos - u_im * u_sin, ui = u_re * u_sin + u_im * u_cos;
  const at::Tensor wr = w_re * w_cos - w_im * w_sin, wi = w_re * w_sin + w_im * w_cos;
  const at::Tensor top = at::cat({ur + wr, ui + wi}, -1);
  const at::Tensor bottom = at::cat({ui - wi, wr - ur}, -1);
  const at::Tensor out = at::cat({top, bottom}, -2) * (0.5 * scale_.unsqueeze(1) * scale_);
  return out.index_select(-2, back_).index_select(-1, back_);
}

}  // namespace subspace
