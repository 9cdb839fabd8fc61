// The residual sum with its RMSNorm, and its gradient, against plain double precision.
#include "kernels/rms_norm.h"

#include <limits>

#include "kernels/training_kernels.h"

namespace subspace::kernels {
namespace {

constexpr double kEps = 1e-6;

struct Case {
  std::int64_t rows, width, stride;
  Doubles x, delta, bias, weight, grad, grad_sum;
};

Case make_case(Element element, std::int64_t rows, std::int64_t width, std::int64_t stride = 0) {
  const auto seed = static_cast<std::uint64_t>(rows * 131 + width);
  Case c{rows, width, stride == 0 ? width : stride, {}, {}, {}, {}, {}, {}};
  c.x = normals(element, rows * width, 1.5, seed);
  c.delta = normals(element, rows * width, 0.7, seed + 1);
  c.bias = normals(element, width, 0.5, seed + 2);
  c.weight = normals(element, width, 1, seed + 3);
  c.grad = normals(element, rows * width, 1, seed + 4);
  c.grad_sum = normals(element, rows * width, 1, seed + 5);
  return c;
}

/// Rows `stride` apart, NaN between them: what lies there is not read.
Doubles spread(const Doubles& rows, std::int64_t width, std::int64_t stride) {
  const std::int64_t count = static_cast<std::int64_t>(rows.size()) / width;
  Doubles out(static_cast<std::size_t>(count * stride), std::numeric_limits<double>::quiet_NaN());
  for (std::int64_t row = 0; row < count; ++row) {
    std::copy_n(rows.begin() + row * width, width, out.begin() + row * stride);
  }
  return out;
}

struct Forward {
  Doubles sum, y, scale;
};

Forward forward(Backend backend, Element element, const Case& c, bool add) {
  const std::int64_t bytes = c.rows * c.width * element_bytes(element);
  Bytes x(backend, encode(element, spread(c.x, c.width, c.stride)));
  Bytes delta(backend, encode(element, c.delta)), bias(backend, encode(element, c.bias));
  Bytes weight(backend, encode(element, c.weight)), sum(backend, bytes), y(backend, bytes);
  Buffer<float> scale(backend, c.rows);
  const RmsNorm p{.x = x.data(),
                  .delta = add ? delta.data() : nullptr,
                  .bias = add ? bias.data() : nullptr,
                  .weight = weight.data(),
                  .sum = add ? sum.data() : nullptr,
                  .y = y.data(),
                  .scale = scale.data(),
                  .rows = c.rows,
                  .width = c.width,
                  .x_stride = c.stride,
                  .eps = kEps,
                  .element = element};
  SUBSPACE_RUN_ON(backend, rms_norm, p);
  return {decode(element, sum.values()), decode(element, y.values()), wide(scale.values())};
}

void expect_forward(const Case& c, Element element, const Forward& got, bool add) {
  // The norm is of the sum as stored.
  const RmsNormResult sums = rms_norm_reference(c.x, c.delta, c.bias, c.weight, kEps);
  const Doubles& read = add ? got.sum : c.x;
  const RmsNormResult want = rms_norm_reference(read, {}, {}, c.weight, kEps);
  const double n = static_cast<double>(c.width), u = unit(), v = stored(element);
  Doubles sum_bound, y_bound, scale_bound;
  for (std::size_t i = 0; i < want.y.size(); ++i) {
    const double terms = std::abs(c.x[i]) + std::abs(c.delta[i]) +
                         std::abs(c.bias[i % static_cast<std::size_t>(c.width)]);
    sum_bound.push_back(2 * u * terms + v * (std::abs(sums.sum[i]) + 2 * u * terms));
    // Squares are all positive: their sum is off by (n + 2) u of itself, its root by half of that.
    y_bound.push_back(std::abs(want.y[i]) * ((n / 2 + 6) * u + v));
  }
  for (const double scale : want.scale) scale_bound.push_back(scale * (n / 2 + 5) * u);
  if (add) expect_within(got.sum, sums.sum, sum_bound, "sum");
  expect_within(got.scale, want.scale, scale_bound, "scale");
  expect_within(got.y, want.y, y_bound, "y");
}

struct Backward {
  Doubles grad_s, weight, bias;
};

Backward backward(Backend backend, Element element, const Case& c, bool more) {
  Bytes grad(backend, encode(element, c.grad)), grad_sum(backend, encode(element, c.grad_sum));
  Bytes s(backend, encode(element, spread(c.x, c.width, c.stride)));
  Bytes weight(backend, encode(element, c.weight));
  const RmsNormResult ahead = rms_norm_reference(c.x, {}, {}, c.weight, kEps);
  Buffer<float> scale(backend, floats(ahead.scale));
  Bytes grad_s(backend, encode(element, spread(c.x, c.width, c.stride)));
  // What is there already is added to.
  Buffer<float> grad_weight(backend, std::vector<float>(c.weight.size(), 2));
  Buffer<float> grad_bias(backend, std::vector<float>(c.weight.size(), 3));
  Buffer<float> partial(backend, rms_norm_workspace(c.rows, c.width));
  const RmsNormGrad p{.grad = grad.data(),
                      .grad_sum = more ? grad_sum.data() : nullptr,
                      .s = s.data(),
                      .weight = weight.data(),
                      .scale = scale.data(),
                      .grad_s = grad_s.data(),
                      .grad_weight = grad_weight.data(),
                      .grad_bias = more ? grad_bias.data() : nullptr,
                      .partial = partial.data(),
                      .rows = c.rows,
                      .width = c.width,
                      .s_stride = c.stride,
                      .grad_stride = c.stride,
                      .element = element};
  SUBSPACE_RUN_ON(backend, rms_norm_grad, p);
  Backward out{{}, wide(grad_weight.values()), wide(grad_bias.values())};
  const Doubles rows = decode(element, grad_s.values());
  for (std::int64_t row = 0; row < c.rows; ++row) {
    out.grad_s.insert(out.grad_s.end(), rows.begin() + row * c.stride,
                      rows.begin() + row * c.stride + c.width);
  }
  return out;
}

void expect_backward(const Case& c, Element element, const Backward& got, bool more) {
  const RmsNormGradResult want =
      rms_norm_grad_reference(c.grad, more ? c.grad_sum : Doubles{}, c.x, c.weight, kEps);
  const RmsNormResult ahead = rms_norm_reference(c.x, {}, {}, c.weight, kEps);
  const auto width = static_cast<std::size_t>(c.width);
  const double n = static_cast<double>(c.width), u = unit(), v = stored(element);
  Doubles bound(want.grad_s.size()), weight_bound(width), bias_bound(width, u), terms(width);
  for (std::size_t row = 0; row < static_cast<std::size_t>(c.rows); ++row) {
    const double r = ahead.scale[row];
    double dot = 0;
    for (std::size_t i = 0; i < width; ++i) {
      dot += std::abs(c.grad[row * width + i] * c.weight[i] * c.x[row * width + i]);
    }
    for (std::size_t i = 0; i < width; ++i) {
      const std::size_t at = row * width + i;
      const double size =
          r * (std::abs(c.grad[at] * c.weight[i]) + std::abs(c.x[at]) * r * r * dot / n) +
          (more ? std::abs(c.grad_sum[at]) : 0);
      bound[at] = (n + 8) * u * size + v * (std::abs(want.grad_s[at]) + (n + 8) * u * size);
      bias_bound[i] += (n + 8) * u * size;  // each term is off, and so is their sum
      terms[i] += size;
      weight_bound[i] += std::abs(c.grad[at] * r * c.x[at]);
    }
  }
  const double sums = static_cast<double>(c.rows + 6) * u;
  Doubles weight = want.weight, bias = want.bias;
  for (std::size_t i = 0; i < width; ++i) {
    weight[i] += 2;
    weight_bound[i] = sums * (weight_bound[i] + 2);
    bias[i] = more ? bias[i] + 3 : 3;
    bias_bound[i] += sums * (terms[i] + 3);
  }
  expect_within(got.grad_s, want.grad_s, bound, "grad_s");
  expect_within(got.weight, weight, weight_bound, "grad_weight");
  expect_within(got.bias, bias, bias_bound, "grad_bias");
}

class RmsNormOn : public OnBackend {};

TEST_P(RmsNormOn, AgreesWithTheReferenceForAllWidths) {
  for (const std::int64_t width : {8, 32, 56, 64, 96, 128, 256, 264, 512, 1024, 2048}) {
    SCOPED_TRACE(width);
    const Case c = make_case(element(), 9, width);
    for (const bool more : {false, true}) {
      expect_forward(c, element(), forward(backend(), element(), c, more), more);
      expect_backward(c, element(), backward(backend(), element(), c, more), more);
    }
  }
}

TEST_P(RmsNormOn, ReadsColumnsOfWiderRowsAndWritesNoOthers) {
  const Case c = make_case(element(), 33, 64, 96);
  expect_forward(c, element(), forward(backend(), element(), c, false), false);
  expect_backward(c, element(), backward(backend(), element(), c, true), true);
}

TEST_P(RmsNormOn, SumsOverManyRows) {
  const Case c = make_case(element(), 5000, 32);
  expect_backward(c, element(), backward(backend(), element(), c, true), true);
  const Backward once = backward(backend(), element(), c, true);
  const Backward again = backward(backend(), element(), c, true);
  EXPECT_EQ(once.weight, again.weight);
  EXPECT_EQ(once.bias, again.bias);
}

TEST_P(RmsNormOn, NanStaysInItsRow) {
  Case c = make_case(element(), 6, 64);
  c.x[2 * 64 + 5] = std::numeric_limits<double>::quiet_NaN();
  const Forward got = forward(backend(), element(), c, true);
  for (std::size_t i = 0; i < got.y.size(); ++i) ASSERT_EQ(std::isnan(got.y[i]), i / 64 == 2);
}

SUBSPACE_ON_BACKENDS(RmsNormOn);

}  // namespace
}  // namespace subspace::kernels
