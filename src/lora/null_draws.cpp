#include "lora/null_draws.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/error.h"

namespace subspace {
namespace {

/// Values of a few draws that are held at once.
constexpr std::int64_t kMostValues = std::int64_t{1} << 21;

/// An isotropic factor scores 1/d however it is turned, up to rounding.
constexpr double kRounding = 1e-9;

/// T [n, a, b], a >= b: a corner of n random orthogonal matrices of side d.
at::Tensor corners(std::int64_t n, std::int64_t d, std::int64_t a, std::int64_t b,
                   const at::Generator& generator) {
  const auto options = at::TensorOptions(at::kDouble);
  if (d - a < b) {
    // No Wishart matrix of full rank is left: whole columns, their signs those of the normals.
    const auto [q, r] = at::linalg_qr(at::randn({n, d, b}, generator, options));
    const at::Tensor signs = r.diagonal(0, 1, 2).sign().unsqueeze(1);
    return (q * signs).narrow(1, 0, a);
  }
  const at::Tensor upper = at::randn({n, a, b}, generator, options);
  at::Tensor rest = at::randn({n, b, b}, generator, options).tril(-1);
  const at::Tensor freedom = static_cast<double>(d - a) - at::arange(b, options);
  rest.diagonal(0, 1, 2).copy_(
      at::_standard_gamma((freedom / 2).expand({n, b}).contiguous(), generator).mul(2).sqrt());
  const at::Tensor square = at::matmul(upper.mT(), upper) + at::matmul(rest, rest.mT());
  const at::Tensor lower = at::linalg_cholesky(square);
  return at::linalg_solve_triangular(lower, upper.mT(), /*upper=*/false).mT();
}

}  // namespace

std::vector<double> haar_p_by_draws(std::int64_t d, const std::vector<HaarQuestion>& questions,
                                    std::int64_t draws, std::uint64_t seed) {
  std::int64_t a = 0, b = 0;
  for (const HaarQuestion& question : questions) {
    a = std::max(a, question.writer.numel());
    b = std::max(b, question.reader.numel());
  }
  if (std::max(a, b) > d) {
    fail(ErrorCode::InvalidValue, "a factor of rank {} in a space of {} dimensions", std::max(a, b),
         d);
  }
  std::vector<double> out(questions.size(), std::numeric_limits<double>::quiet_NaN());
  if (a == 0 || b == 0) return out;
  const bool turned = a < b;  // the law of a corner is that of its transpose
  if (turned) std::swap(a, b);

  const at::Generator generator = at::detail::createCPUGenerator(seed);
  std::vector<std::int64_t> reached(questions.size(), 0);
  const std::int64_t at_once = std::max<std::int64_t>(1, kMostValues / (a * b));
  for (std::int64_t done = 0; done < draws; done += at_once) {
    const at::Tensor t = corners(std::min(at_once, draws - done), d, a, b, generator).square();
    const at::Tensor squares = turned ? t.mT() : t;
    for (std::size_t i = 0; i < questions.size(); ++i) {
      const at::Tensor &w = questions[i].writer, &r = questions[i].reader;
      if (w.numel() == 0 || r.numel() == 0) continue;
      const at::Tensor seen = squares.narrow(1, 0, w.numel()).narrow(2, 0, r.numel());
      const at::Tensor scores = at::matmul(at::matmul(seen, r), w) / (w.sum() * r.sum());
      const double least = questions[i].score_squared * (1 - kRounding);
      reached[i] += (scores >= least).sum().item<std::int64_t>();
    }
  }
  for (std::size_t i = 0; i < questions.size(); ++i) {
    if (questions[i].writer.numel() == 0 || questions[i].reader.numel() == 0) continue;
    if (std::isnan(questions[i].score_squared)) continue;
    out[i] = static_cast<double>(1 + reached[i]) / static_cast<double>(1 + draws);
  }
  return out;
}

}  // namespace subspace
