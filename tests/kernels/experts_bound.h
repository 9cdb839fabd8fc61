// Bounds on the rounding errors of the expert kernels, value by value.
#pragma once

#include <cmath>

#include "kernels/element.h"
#include "kernels/ethos_reference.h"
#include "kernels/gelu.h"

namespace subspace::kernels {

struct ExpertsBound {
  ExpertsForward forward;
  ExpertsBackward backward;
};

/// Of stored experts; of ETHOS's with down = up = table, where both tables' bounds add up.
///
/// A float32 sum of n products is off by at most (n + 2) u sum |products|, u = 2^-24, whatever its
/// order; storing costs |value| v, v = 2^-24 or 2^-8; gelu and its slope cost kGeluError and change
/// by at most 1.13 and 0.8 times their argument's error.
inline ExpertsBound experts_bound(const Routed& r, const Doubles& x, const Doubles& down,
                                  const Doubles& up, const Doubles& grad, Element element) {
  const double u = std::ldexp(1, -24);
  const double v = element == Element::f32 ? u : std::ldexp(1, -8);
  const auto products = static_cast<double>(r.width + 2) * u;
  const auto n = static_cast<std::size_t>(r.tokens * r.selections);
  const auto width = static_cast<std::size_t>(r.width);
  const ExpertsBackward exact = stored_experts_grad_reference(r, x, down, up, grad);
  const ExpertsForward ahead = stored_experts_reference(r, x, down, up);
  ExpertsBound out{{Doubles(ahead.acc.size()), Doubles(n)},
                   {Doubles(n), Doubles(n), Doubles(n), Doubles(ahead.acc.size()),
                    Doubles(up.size()), Doubles(up.size())}};
  std::vector<double> count(static_cast<std::size_t>(r.experts));
  for (const std::int64_t expert : r.index) count[static_cast<std::size_t>(expert)] += 1;
  const double sums = static_cast<double>(r.selections + 2) * u;
  for (std::size_t m = 0; m < n; ++m) {
    const std::size_t t = m / static_cast<std::size_t>(r.selections) * width;
    const auto expert = static_cast<std::size_t>(r.index[m]);
    double size_p = 0;
    double size_q = 0;
    double q = 0;
    for (std::size_t i = 0; i < width; ++i) {
      size_p += std::abs(down[expert * width + i] * x[t + i]);
      size_q += std::abs(up[expert * width + i] * grad[t + i]);
      q += up[expert * width + i] * grad[t + i];
    }
    const double p = ahead.p[m];
    const double s = std::abs(r.scores[m]);
    const Gelu<double> gelu = gelu_exact(p);
    const double off_p = products * size_p;
    const double off_q = products * size_q;
    const double off_gelu = 1.13 * off_p + kGeluError * (std::abs(p) + off_p);
    const double off_slope = 0.8 * off_p + 2 * kGeluError;
    const double off_output = s * off_gelu + 3 * u * std::abs(exact.output[m]);
    const double off_input =
        s * (std::abs(gelu.slope) * off_q + (std::abs(q) + off_q) * off_slope) +
        4 * u * std::abs(exact.input[m]);
    out.forward.p[m] = off_p;
    out.backward.scores[m] = std::abs(gelu.value) * off_q + (std::abs(q) + off_q) * off_gelu +
                             3 * u * std::abs(exact.scores[m]);
    out.backward.output[m] = off_output;
    out.backward.input[m] = off_input;
    const double list = (count[expert] + 3) * u;
    for (std::size_t i = 0; i < width; ++i) {
      const double h_up = std::abs(up[expert * width + i]);
      const double h_down = std::abs(down[expert * width + i]);
      out.forward.acc[t + i] += h_up * (off_output + sums * std::abs(exact.output[m]));
      out.backward.vectors[t + i] += h_down * (off_input + sums * std::abs(exact.input[m]));
      out.backward.table[expert * width + i] +=
          std::abs(grad[t + i]) * (off_output + list * std::abs(exact.output[m]));
      out.backward.down[expert * width + i] +=
          std::abs(x[t + i]) * (off_input + list * std::abs(exact.input[m]));
    }
  }
  const auto store = [&](Doubles& bound, const Doubles& value) {
    for (std::size_t i = 0; i < bound.size(); ++i) bound[i] += v * (std::abs(value[i]) + bound[i]);
  };
  store(out.forward.acc, ahead.acc);
  store(out.backward.vectors, exact.vectors);
  store(out.backward.table, exact.table);
  store(out.backward.down, exact.down);
  return out;
}

/// One table instead of two: errors and values add before the one storing, which is not more than
/// storing both.
inline ExpertsBound ethos_experts_bound(const Routed& r, const Doubles& xp, const Doubles& table,
                                        const Doubles& grad, Element element) {
  ExpertsBound out = experts_bound(r, xp, table, table, grad, element);
  for (std::size_t i = 0; i < out.backward.table.size(); ++i) {
    out.backward.table[i] += out.backward.down[i];
  }
  return out;
}

}  // namespace subspace::kernels
