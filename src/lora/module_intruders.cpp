#include "lora/module_intruders.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace subspace {
namespace {

/// Of |C C^T y - sigma^2 y| over sigma_1^2, at which a vector is found.
constexpr double kFoundResidual = 1e-13;
/// Directions of the search space beyond which the small matrix is decomposed as it is.
constexpr std::int64_t kMostSearched = 480;
/// Rows up to which it is decomposed at once.
constexpr std::int64_t kDenseRows = 160;
/// Below this part of a factor, what the base's span leaves of it is rounding.
constexpr double kLeftOver = 1e-12;

/// A factor of the change in the coordinates of an orthonormal `base` [m, n], and below them those
/// of what lies outside of its span.
at::Tensor in_coordinates(const at::Tensor& base, const at::Tensor& factor) {
  const at::Tensor inside = at::matmul(base.t(), factor);
  if (base.size(0) == base.size(1)) return inside;
  at::Tensor rest = factor - at::matmul(base, inside);
  rest = rest - at::matmul(base, at::matmul(base.t(), rest));
  if (!(rest.norm() > kLeftOver * factor.norm()).item<bool>()) return inside;
  return at::cat({inside, std::get<1>(at::linalg_qr(rest, "r"))}, 0);
}

/// C = diag(S) + L R^T, zeros around the diagonal.
class UpdatedDiagonal {
 public:
  UpdatedDiagonal(at::Tensor s, at::Tensor left, at::Tensor right)
      : s_(std::move(s)), left_(std::move(left)), right_(std::move(right)) {}

  std::int64_t rows() const { return left_.size(0); }
  std::int64_t columns() const { return right_.size(0); }
  at::Tensor apply(const at::Tensor& x) const {
    return scaled(x, rows()) + at::matmul(left_, at::matmul(right_.t(), x));
  }
  at::Tensor apply_transposed(const at::Tensor& y) const {
    return scaled(y, columns()) + at::matmul(right_, at::matmul(left_.t(), y));
  }
  at::Tensor dense() const { return apply(at::eye(columns(), right_.options())); }
  /// Squares of the diagonal, a row each.
  at::Tensor squares() const { return at::constant_pad_nd(s_.square(), {0, rows() - s_.size(0)}); }
  /// A search space to begin with. An update of rank r leaves the k-th value above the base's
  /// (k + r)-th, so a leading vector that has no part in either of these would contradict its rank.
  at::Tensor start(std::int64_t count) const {
    const std::int64_t first = std::min(s_.size(0), count + left_.size(1));
    return at::cat({at::eye(rows(), left_.options()).narrow(1, 0, first), left_}, 1);
  }

 private:
  at::Tensor scaled(const at::Tensor& x, std::int64_t size) const {
    const at::Tensor part = s_.unsqueeze(1) * x.narrow(0, 0, s_.size(0));
    return at::constant_pad_nd(part, {0, 0, 0, size - s_.size(0)});
  }
  at::Tensor s_, left_, right_;
};

struct LeadingTriples {
  at::Tensor left, values, right;  // [rows, k], [k], [columns, k]
};

/// The first `count`, fewer where the matrix has no more.
LeadingTriples by_decomposition(const at::Tensor& matrix, std::int64_t count) {
  const auto [u, s, vh] = at::linalg_svd(matrix, /*full_matrices=*/false);
  const std::int64_t k = std::min(count, s.size(0));
  return {u.narrow(1, 0, k), s.narrow(0, 0, k), vh.narrow(0, 0, k).t()};
}

/// New directions of `block` beside an orthonormal basis, orthonormal; fewer where it has no more.
at::Tensor beside(const at::Tensor& basis, at::Tensor block) {
  block = block / block.norm(2, 0, true).clamp_min(std::numeric_limits<double>::min());
  for (int round = 0; round < 2 && basis.defined(); ++round) {
    block = block - at::matmul(basis, at::matmul(basis.t(), block));
  }
  const auto [u, s, vh] = at::linalg_svd(block, /*full_matrices=*/false);
  at::Tensor fresh = u.narrow(1, 0, (s > 1e-8).sum().item<std::int64_t>());
  if (basis.defined()) {
    fresh = fresh - at::matmul(basis, at::matmul(basis.t(), fresh));
    fresh = std::get<0>(at::linalg_qr(fresh));
  }
  return fresh;
}

/// (D - theta)^-1 of each residual, away from the poles.
at::Tensor corrections(const at::Tensor& squares, const at::Tensor& theta,
                       const at::Tensor& residual, const at::Tensor& scale) {
  const at::Tensor gap = squares.unsqueeze(1) - theta;
  const at::Tensor least = 1e-8 * scale;
  return residual / at::where(gap.abs() < least, at::where(gap < 0, -least, least), gap);
}

/// Davidson's method on C C^T; nothing if the space grows too large for it to pay. (Source:
/// Davidson, "The iterative calculation of a few of the lowest eigenvalues and corresponding
/// eigenvectors of large real-symmetric matrices", J. Comput. Phys. 17, 1975.)
std::optional<LeadingTriples> by_search(const UpdatedDiagonal& c, std::int64_t count) {
  const at::Tensor squares = c.squares();
  at::Tensor basis = beside({}, c.start(count)), images = c.apply_transposed(basis);
  while (basis.size(1) <= kMostSearched) {
    const auto [y, s, gh] = at::linalg_svd(images, /*full_matrices=*/false);
    const std::int64_t k = std::min(count, s.size(0));
    const at::Tensor left = at::matmul(basis, gh.narrow(0, 0, k).t());
    const at::Tensor values = s.narrow(0, 0, k), right = y.narrow(1, 0, k);
    const at::Tensor theta = values.square();
    const at::Tensor residual = c.apply(right * values) - left * theta;
    const at::Tensor found = residual.norm(2, 0) <= kFoundResidual * theta[0];
    const at::Tensor open = found.logical_not().nonzero().squeeze(1);
    if (open.numel() == 0) return LeadingTriples{left, values, right};
    const at::Tensor fresh = beside(basis, corrections(squares, theta.index_select(0, open),
                                                       residual.index_select(1, open), theta[0]));
    if (fresh.size(1) == 0) return std::nullopt;
    basis = at::cat({basis, fresh}, 1);
    images = at::cat({images, c.apply_transposed(fresh)}, 1);
  }
  return std::nullopt;
}

LeadingTriples leading(const UpdatedDiagonal& c, std::int64_t count, IntruderRoute route) {
  const bool small = std::min(c.rows(), c.columns()) <= kDenseRows;
  if (route == IntruderRoute::search || (route == IntruderRoute::automatic && !small)) {
    if (auto found = by_search(c, count)) return *found;
  }
  return by_decomposition(c.dense(), count);
}

double rounding_of(std::int64_t out, std::int64_t in) {
  return static_cast<double>(std::max(out, in)) * std::numeric_limits<double>::epsilon();
}

/// Without directions of no strength, which are any.
LeadingTriples with_strength(LeadingTriples all, double rounding) {
  if (all.values.numel() == 0) return all;
  const std::int64_t k = (all.values > rounding * all.values[0]).sum().item<std::int64_t>();
  return {all.left.narrow(1, 0, k), all.values.narrow(0, 0, k), all.right.narrow(1, 0, k)};
}

at::Tensor first_of(const at::Tensor& values, std::int64_t count) {
  return values.narrow(0, 0, std::min(count, values.size(0)));
}

/// Orthonormal columns, uniformly random.
at::Tensor random_frame(std::int64_t rows, std::int64_t columns, const at::Generator& generator) {
  const auto [q, r] = at::linalg_qr(at::randn({rows, columns}, generator, at::kDouble));
  return q * r.diagonal().sign();
}

/// The rows of a random frame that fall on the base's n directions, and below them what a rotation
/// makes of the rest.
at::Tensor frame_coordinates(const at::Tensor& frame, std::int64_t n) {
  if (frame.size(0) == n) return frame;
  const at::Tensor rest = frame.narrow(0, n, frame.size(0) - n);
  return at::cat({frame.narrow(0, 0, n), std::get<1>(at::linalg_qr(rest, "r"))}, 0);
}

/// Sums over draws; a draw with fewer directions than another adds none to the last.
void add_draw(RandomSide& sum, const IntruderSide& side, std::span<const double> cosines,
              double weight) {
  if (!sum.similarity.defined()) {
    sum.similarity = at::zeros_like(side.similarity);
    sum.intruders.assign(cosines.size(), 0);
  }
  const std::int64_t k = std::min(sum.similarity.size(0), side.similarity.size(0));
  sum.similarity.narrow(0, 0, k).add_(side.similarity.narrow(0, 0, k), weight);
  for (std::size_t i = 0; i < cosines.size(); ++i) {
    sum.intruders[i] += weight * static_cast<double>(intruders(side, cosines[i]));
  }
}

}  // namespace

std::int64_t intruders(const IntruderSide& side, double cosine) {
  return (side.similarity < cosine).sum().item<std::int64_t>();
}

ModuleSpectrum::ModuleSpectrum(const at::Tensor& w, std::int64_t count, IntruderRoute route)
    : out_(w.dim() == 2 ? w.size(0) : 0),
      in_(w.dim() == 2 ? w.size(1) : 0),
      count_(count),
      route_(route),
      weight_(w) {
  if (w.dim() != 2 || w.numel() == 0) {
    fail(ErrorCode::InvalidShape, "a matrix of {} rows and columns; expected [out, in]",
         shape_text(w.sizes().vec()));
  }
  if (!w.isfinite().all().item<bool>()) {
    fail(ErrorCode::NotFinite, "a matrix with NaN or infinity has no singular vectors");
  }
  const auto [u, s, vh] = at::linalg_svd(w, /*full_matrices=*/false);
  const std::int64_t n = (s > rounding_of(out_, in_) * s[0]).sum().item<std::int64_t>();
  u_ = u.narrow(1, 0, n);
  s_ = s.narrow(0, 0, n);
  v_ = vh.narrow(0, 0, n).t();
  if (n == 0) return;
  const at::Tensor apart =
      s_.narrow(0, 0, n - 1) - s_.narrow(0, 1, n - 1) > kSameValue * s_.narrow(0, 0, n - 1);
  group_ = at::cat({at::zeros({1}, at::kLong), apart.cumsum(0)});
  first_ = at::cat({at::zeros({1}, at::kLong), apart.nonzero().squeeze(1) + 1});
}

void ModuleSpectrum::check_shape(std::int64_t out, std::int64_t in) const {
  if (out == out_ && in == in_) return;
  fail(ErrorCode::InvalidShape, "a change of [{}, {}] for a matrix of [{}, {}]", out, in, out_,
       in_);
}

ModuleIntruders ModuleSpectrum::start() const {
  ModuleIntruders result;
  result.base = first_of(s_, count_);
  result.fro_base = s_.norm().item<double>();
  result.base_rank = s_.size(0);
  return result;
}

/// `coordinates` [>= n, k], the first n rows the cosines with the base's directions.
IntruderSide ModuleSpectrum::side_of(const at::Tensor& coordinates) const {
  const std::int64_t n = s_.size(0), k = coordinates.size(1);
  if (n == 0) {
    const at::Tensor none = at::zeros({k}, at::kDouble);
    return {none, at::full({k}, -1, at::kLong), none};
  }
  const at::Tensor energy = coordinates.narrow(0, 0, n).square();
  const at::Tensor of_groups =
      at::zeros({first_.size(0), k}, at::kDouble).index_add_(0, group_, energy);
  const auto [most, which] = of_groups.max(0);
  return {most.sqrt().clamp_max(1), first_.index_select(0, which),
          energy.sum(0).sqrt().clamp_max(1)};
}

ModuleIntruders ModuleSpectrum::with(const LowRank& change) const {
  check_shape(change.left.size(0), change.right.size(0));
  for (const at::Tensor& factor : {change.left, change.right}) {
    if (factor.isfinite().all().item<bool>()) continue;
    fail(ErrorCode::NotFinite, "a change with NaN or infinity has no singular vectors");
  }
  const at::Tensor values = singular_values(change);
  const UpdatedDiagonal c(s_, in_coordinates(u_, change.left), in_coordinates(v_, change.right));
  const LeadingTriples found = with_strength(leading(c, count_, route_), rounding_of(out_, in_));
  ModuleIntruders result = start();
  result.adapted = found.values;
  result.delta = values;
  result.fro_delta = values.norm().item<double>();
  result.output = side_of(found.left);
  result.input = side_of(found.right);
  return result;
}

ModuleIntruders ModuleSpectrum::with(const at::Tensor& adapted) const {
  check_shape(adapted.size(0), adapted.size(1));
  if (!adapted.isfinite().all().item<bool>()) {
    fail(ErrorCode::NotFinite, "an adapted matrix with NaN or infinity has no singular vectors");
  }
  const LeadingTriples found =
      with_strength(by_decomposition(adapted, count_), rounding_of(out_, in_));
  ModuleIntruders result = start();
  result.adapted = found.values;
  result.fro_delta = (adapted - weight_).norm().item<double>();
  result.output = side_of(at::matmul(u_.t(), found.left));
  result.input = side_of(at::matmul(v_.t(), found.right));
  return result;
}

RandomUpdates ModuleSpectrum::random(const at::Tensor& delta, std::span<const double> cosines,
                                     std::int64_t draws, std::uint64_t seed) const {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const std::int64_t r = delta.size(0), n = s_.size(0);
  RandomUpdates sum;
  for (std::int64_t i = 0; i < draws; ++i) {
    // U and V are not needed: seen from them a uniformly random frame is one as well.
    const at::Tensor left = frame_coordinates(random_frame(out_, r, generator) * delta, n);
    const at::Tensor right = frame_coordinates(random_frame(in_, r, generator), n);
    const LeadingTriples found =
        with_strength(leading({s_, left, right}, count_, route_), rounding_of(out_, in_));
    const double weight = 1.0 / static_cast<double>(draws);
    add_draw(sum.output, side_of(found.left), cosines, weight);
    add_draw(sum.input, side_of(found.right), cosines, weight);
  }
  return sum;
}

}  // namespace subspace
