// The gate of the feed-forward layer and its gradient against plain double precision.
#include "kernels/swiglu.h"

#include <limits>

#include "kernels/training_kernels.h"

namespace subspace::kernels {
namespace {

struct Case {
  std::int64_t rows, width;
  Doubles up, bias, grad;
};

Case make_case(Element element, std::int64_t rows, std::int64_t width) {
  const auto seed = static_cast<std::uint64_t>(rows * 17 + width);
  return {rows, width, normals(element, rows * 2 * width, 3, seed),
          normals(element, 2 * width, 1, seed + 1), normals(element, rows * width, 1, seed + 2)};
}

/// The bias that a call without one stands for.
Doubles bias_of(const Case& c, bool with) { return with ? c.bias : Doubles(c.bias.size(), 0); }

/// exp is off by a few units in the last place, and by u |a| from its argument's rounding.
double gate_error(double a) { return (12 + 3 * std::abs(a)) * unit(); }

void expect_forward(Backend backend, Element element, const Case& c, bool with) {
  Bytes up(backend, encode(element, c.up)), bias(backend, encode(element, c.bias));
  Bytes y(backend, c.rows * c.width * element_bytes(element));
  const Swiglu p{.up = up.data(),
                 .bias = with ? bias.data() : nullptr,
                 .y = y.data(),
                 .rows = c.rows,
                 .width = c.width,
                 .element = element};
  SUBSPACE_RUN_ON(backend, swiglu, p);
  const Doubles b = bias_of(c, with), want = swiglu_reference(c.up, b);
  Doubles bound(want.size());
  const auto width = static_cast<std::size_t>(c.width);
  for (std::size_t i = 0; i < want.size(); ++i) {
    const std::size_t gate = i / width * 2 * width + i % width;
    const double a = c.up[gate] + b[i % width];
    const double value = std::abs(c.up[gate + width]) + std::abs(b[width + i % width]);
    bound[i] = (gate_error(a) + 3 * unit()) * (std::abs(a) + 1) * value +
               stored(element) * std::abs(want[i]);
  }
  expect_within(decode(element, y.values()), want, bound, "y");
}

void expect_backward(Backend backend, Element element, const Case& c, bool with, bool in_place) {
  Bytes grad(backend, encode(element, c.grad)), up(backend, encode(element, c.up));
  Bytes bias(backend, encode(element, c.bias));
  Bytes out(backend, c.rows * 2 * c.width * element_bytes(element));
  Buffer<float> grad_bias(backend, std::vector<float>(c.bias.size(), 1));
  Buffer<float> partial(backend, swiglu_workspace(c.rows, c.width));
  const SwigluGrad p{.grad = grad.data(),
                     .up = up.data(),
                     .bias = with ? bias.data() : nullptr,
                     .grad_up = in_place ? up.data() : out.data(),
                     .grad_bias = with ? grad_bias.data() : nullptr,
                     .partial = partial.data(),
                     .rows = c.rows,
                     .width = c.width,
                     .element = element};
  SUBSPACE_RUN_ON(backend, swiglu_grad, p);
  const Doubles b = bias_of(c, with);
  const SwigluGradResult want = swiglu_grad_reference(c.grad, c.up, b);
  const auto width = static_cast<std::size_t>(c.width);
  Doubles bound(want.up.size()), bias_bound(want.bias.size(), 0), size(want.bias.size(), 1);
  for (std::size_t i = 0; i < c.grad.size(); ++i) {
    const std::size_t gate = i / width * 2 * width + i % width, value = gate + width;
    const double a = c.up[gate] + b[i % width];
    const double v = std::abs(c.up[value]) + std::abs(b[width + i % width]);
    const double g = std::abs(c.grad[i]);
    const double off_gate = 3 * gate_error(a) * g * v * (1 + std::abs(a));
    const double off_value = 2 * gate_error(a) * g * (1 + std::abs(a));
    bound[gate] = off_gate + stored(element) * std::abs(want.up[gate]);
    bound[value] = off_value + stored(element) * std::abs(want.up[value]);
    bias_bound[i % width] += off_gate;
    bias_bound[width + i % width] += off_value;
    size[i % width] += std::abs(want.up[gate]);
    size[width + i % width] += std::abs(want.up[value]);
  }
  expect_within(decode(element, in_place ? up.values() : out.values()), want.up, bound, "grad_up");
  Doubles sums = want.bias;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    sums[i] = with ? sums[i] + 1 : 1;
    bias_bound[i] += static_cast<double>(c.rows + 4) * unit() * size[i];
  }
  expect_within(wide(grad_bias.values()), sums, bias_bound, "grad_bias");
}

class SwigluOn : public OnBackend {};

TEST_P(SwigluOn, AgreesWithTheReferenceForAllShapes) {
  struct Shape {
    std::int64_t rows, width;
  };
  for (const Shape& s :
       {Shape{1, 8}, Shape{7, 24}, Shape{3, 1024}, Shape{2, 2056}, Shape{1500, 32}}) {
    SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.width);
    const Case c = make_case(element(), s.rows, s.width);
    for (const bool with : {false, true}) {
      expect_forward(backend(), element(), c, with);
      expect_backward(backend(), element(), c, with, /*in_place=*/false);
    }
    expect_backward(backend(), element(), c, true, /*in_place=*/true);
  }
}

TEST_P(SwigluOn, FarOutGatesNeitherOverflowNorGetLost) {
  Case c = make_case(element(), 1, 8);
  const double far[] = {-1000, -90, -20, 0, 20, 90, 1000, 1e30};
  std::copy_n(far, 8, c.up.begin());
  c.up = decode(element(), encode(element(), c.up));
  expect_forward(backend(), element(), c, false);
}

SUBSPACE_ON_BACKENDS(SwigluOn);

}  // namespace
}  // namespace subspace::kernels
