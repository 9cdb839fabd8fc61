#include "kernels/bidiagonal_qr.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace subspace::kernels {
namespace {

constexpr double kSmallest = std::numeric_limits<double>::epsilon();
/// Sweeps a value; two are usual.
constexpr std::int64_t kMostSweeps = 40;
constexpr std::int64_t kLanes = SmallSvd::kAtOnce;

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

/// Where the iteration of a matrix stands.
class Block {
 public:
  void start(Bidiagonal& matrix) {
    matrix_ = &matrix;
    matrix.converged = true;
    high_ = matrix.n - 1;
    sweeps_ = kMostSweeps * matrix.n;
    largest_ = 0;
    for (std::int64_t i = 0; i < matrix.n; ++i) {
      largest_ = std::max({largest_, std::abs(matrix.d[i]), std::abs(matrix.e[i])});
    }
  }

  /// Finds the last unreduced block and its shift; false if there is none.
  bool next() {
    while (matrix_ && high_ > 0) {
      double *d = matrix_->d, *e = matrix_->e;
      low_ = high_;
      singular_ = false;
      drop_small(d[high_]);
      while (low_ > 0 && !small(e[low_ - 1])) drop_small(d[--low_]);
      if (low_ > 0) e[low_ - 1] = 0;
      if (low_ < high_) {
        matrix_->converged = sweeps_-- > 0;
        if (!matrix_->converged) break;
        choose();
        return true;
      }
      --high_;
    }
    matrix_ = nullptr;
    return false;
  }

  double shift() const { return shift_; }
  std::int64_t steps() const { return high_ - low_; }

  /// Between the matrix and every kLanes-th element of d and e; upwards the block stands on its
  /// head.
  void put(double* d, double* e) const {
    for (std::int64_t i = 0; i <= steps(); ++i) d[i * kLanes] = matrix_->d[place(i)];
    for (std::int64_t i = 0; i < steps(); ++i) e[i * kLanes] = matrix_->e[row(i)];
  }
  void take(const double* d, const double* e) {
    for (std::int64_t i = 0; i <= steps(); ++i) matrix_->d[place(i)] = d[i * kLanes];
    for (std::int64_t i = 0; i < steps(); ++i) matrix_->e[row(i)] = e[i * kLanes];
  }

  /// Adds a sweep's rotations. Those of one upwards are of the other side first, and turn rows the
  /// other way round.
  void keep(const double* turns) const {
    add(down_ ? *matrix_->right : *matrix_->left, turns);
    add(down_ ? *matrix_->left : *matrix_->right, turns + 2 * kLanes);
  }

 private:
  bool small(double x) const { return std::abs(x) <= kSmallest * largest_; }
  void drop_small(double& x) {
    if (!small(x)) return;
    x = 0;
    singular_ = true;
  }
  std::int64_t place(std::int64_t i) const { return down_ ? low_ + i : high_ - i; }
  std::int64_t row(std::int64_t i) const { return down_ ? low_ + i : high_ - 1 - i; }

  void add(std::vector<SmallSvd::Rotation>& to, const double* turns) const {
    const std::size_t before = to.size();
    to.resize(before + static_cast<std::size_t>(steps()));
    SmallSvd::Rotation* next = to.data() + before;
    for (std::int64_t i = 0; i < steps(); ++i) {
      const double* turn = turns + i * 4 * kLanes;
      next[i] = {row(i), turn[0], down_ ? turn[kLanes] : -turn[kLanes]};
    }
  }

  void choose() {
    const double *d = matrix_->d, *e = matrix_->e;
    // From the larger end to the smaller, where values then come to rest; for as long as it is the
    // same block that shrinks, so that no two directions undo each other's work.
    if (low_ > last_high_ || high_ < last_low_) down_ = std::abs(d[low_]) >= std::abs(d[high_]);
    last_low_ = low_, last_high_ = high_;
    shift_ = 0;
    if (singular_) return;
    shift_ = down_ ? smaller_value(d[high_ - 1], e[high_ - 1], d[high_])
                   : smaller_value(d[low_], e[low_], d[low_ + 1]);
    const double start = std::abs(d[down_ ? low_ : high_]);
    if (start == 0 || (shift_ / start) * (shift_ / start) < kSmallest) shift_ = 0;
  }

  Bidiagonal* matrix_ = nullptr;
  std::int64_t low_ = 0, high_ = -1, sweeps_ = 0;
  double largest_ = 0, shift_ = 0;
  bool down_ = true, singular_ = false;  ///< a value of the block is zero
  std::int64_t last_low_ = std::numeric_limits<std::int64_t>::max(), last_high_ = -1;
};

}  // namespace

void diagonalise(Bidiagonal* matrices, std::int64_t count, void (*sweep)(const BidiagonalSweeps&),
                 std::vector<double>& scratch) {
  std::array<Block, static_cast<std::size_t>(kLanes)> blocks;
  std::int64_t longest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    blocks[static_cast<std::size_t>(i)].start(matrices[i]);
    longest = std::max(longest, matrices[i].n);
  }
  const std::int64_t part = (longest + 1) * kLanes;
  scratch.assign(static_cast<std::size_t>(6 * part), 0);
  double *d = scratch.data(), *e = d + part, *turns = e + part;
  for (;;) {
    std::array<bool, static_cast<std::size_t>(kLanes)> more{};
    bool any = false;
    for (std::size_t i = 0; i < more.size(); ++i) any |= more[i] = blocks[i].next();
    if (!any) return;
    for (const bool shifted : {true, false}) {
      BidiagonalSweeps p{.d = d, .e = e, .turns = turns, .shifted = shifted};
      bool some = false;
      for (std::size_t i = 0; i < more.size(); ++i) {
        if (!more[i] || (blocks[i].shift() != 0) != shifted) continue;
        blocks[i].put(d + i, e + i);
        p.steps[i] = blocks[i].steps();
        p.shift[i] = blocks[i].shift();
        some = true;
      }
      if (!some) continue;
      sweep(p);
      for (std::size_t i = 0; i < more.size(); ++i) {
        if (p.steps[i] == 0) continue;
        blocks[i].take(d + i, e + i);
        blocks[i].keep(turns + i);
      }
    }
  }
}

}  // namespace subspace::kernels
