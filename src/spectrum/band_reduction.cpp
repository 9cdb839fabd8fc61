#include "spectrum/band_reduction.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "spectrum/product.h"

namespace subspace {
namespace {

/// Of the library's products: half of a diagonal block is work in vain; narrow ones are slow.
constexpr std::int64_t kStrip = 512;

struct Reflections {
  at::Tensor v;  // [m, k] unit lower trapezoidal
  at::Tensor t;  // [k, k] upper triangular: (I - tau_1 v_1 v_1^T) .. (I - tau_k ..) = I - V T V^T
  at::Tensor r;  // [k, k] upper triangular
};

/// Column j of T: -tau_j T[:j, :j] (V[:, :j]^T v_j), and tau_j on the diagonal.
at::Tensor block_reflector(const at::Tensor& v, const at::Tensor& tau, Multiplier by) {
  const std::int64_t k = v.size(1);
  const at::Tensor inner = product(v.t(), v, by).contiguous();
  at::Tensor t = at::zeros({k, k}, v.options());
  const double* g = inner.const_data_ptr<double>();
  const double* taus = tau.const_data_ptr<double>();
  double* out = t.data_ptr<double>();
  for (std::int64_t j = 0; j < k; ++j) {
    for (std::int64_t i = 0; i < j; ++i) {
      double sum = 0;
      for (std::int64_t l = i; l < j; ++l) sum += out[i * k + l] * g[l * k + j];
      out[i * k + j] = -taus[j] * sum;
    }
    out[j * k + j] = taus[j];
  }
  return t;
}

Reflections factor_panel(const at::Tensor& panel, Multiplier by) {
  const std::int64_t k = std::min(panel.size(0), panel.size(1));
  const auto [packed, tau] = at::geqrf(panel);
  at::Tensor v = packed.narrow(1, 0, k).tril(-1);
  v.diagonal().fill_(1);
  return {v.contiguous(), block_reflector(v, tau.contiguous(), by), packed.narrow(0, 0, k).triu()};
}

/// For the library: the matrix as blocks of rows of a fixed grid, of which the diagonal blocks and
/// what is right of them are kept: products of wide rows are a fifth faster than those of high
/// columns.
class Blocks {
 public:
  static constexpr Multiplier kBy = Multiplier::library;

  explicit Blocks(const at::Tensor& a) : a_(a), n_(a.size(0)) {
    for (std::int64_t j = 0; j < n_; j += kStrip) {
      const std::int64_t e = end(j);
      at::Tensor diagonal = part(j, e, j, e);
      diagonal.copy_(diagonal.tril() + diagonal.tril(-1).t());
      part(j, e, e, n_).copy_(part(e, n_, j, e).t());
    }
  }

  /// Columns [column, start) from row `start` on.
  at::Tensor panel(std::int64_t column, std::int64_t start) const {
    return part(column, start, start, n_).t();
  }
  at::Tensor diagonal(std::int64_t i) const { return a_.diagonal(i); }

  /// A V for the trailing matrix from `start` on; v [n - start, k].
  at::Tensor multiply(std::int64_t start, const at::Tensor& v) const {
    const std::int64_t size = n_ - start;
    const at::Tensor turned = v.t().contiguous();
    at::Tensor right = at::zeros_like(v), below = at::zeros_like(turned);
    for (std::int64_t j = start; j < n_; j = end(j)) {
      const std::int64_t e = end(j), at = j - start, next = e - start;
      right.narrow(0, at, e - j).addmm_(part(j, e, j, n_), v.narrow(0, at, size - at));
      if (e == n_) break;
      below.narrow(1, next, size - next).addmm_(turned.narrow(1, at, e - j), part(j, e, e, n_));
    }
    return right.add_(below.t());
  }

  /// A -= V W^T + W V^T for the trailing matrix.
  void update(std::int64_t start, const at::Tensor& v, const at::Tensor& w) const {
    const at::Tensor left = at::cat({v, w}, 1), right = at::cat({w, v}, 1);
    for (std::int64_t j = start; j < n_; j = end(j)) {
      at::Tensor block = part(j, end(j), j, n_);
      block.addmm_(left.narrow(0, j - start, end(j) - j), right.narrow(0, j - start, n_ - j).t(), 1,
                   -1);
    }
  }

 private:
  at::Tensor part(std::int64_t row, std::int64_t to_row, std::int64_t column,
                  std::int64_t to_column) const {
    return a_.narrow(0, row, to_row - row).narrow(1, column, to_column - column);
  }

  /// Where the block that row j belongs to ends.
  std::int64_t end(std::int64_t j) const { return std::min(j / kStrip * kStrip + kStrip, n_); }

  const at::Tensor& a_;
  std::int64_t n_;
};

/// For the own product: the lower triangle as it is.
class Lower {
 public:
  static constexpr Multiplier kBy = Multiplier::own;

  explicit Lower(const at::Tensor& a) : a_(a), n_(a.size(0)) {}

  at::Tensor panel(std::int64_t column, std::int64_t start) const {
    return a_.narrow(0, start, n_ - start).narrow(1, column, start - column);
  }
  at::Tensor diagonal(std::int64_t i) const { return a_.diagonal(-i); }

  at::Tensor multiply(std::int64_t start, const at::Tensor& v) const {
    const std::int64_t size = n_ - start, width = v.size(1);
    // (A V)^T = V^T A: a row of A at a time is how it is copied fastest.
    const at::Tensor out = at::empty({width, size}, v.options());
    at::Tensor kept;
    kernels::matrix_product_cpu({.a = product_operand(v.t(), kept),
                                 .b = {trailing(start), n_, kernels::Stored::lower},
                                 .c = out.data_ptr<double>(),
                                 .stride = size,
                                 .m = width,
                                 .n = size,
                                 .k = size},
                                product_threads());
    return out.t();
  }

  void update(std::int64_t start, const at::Tensor& v, const at::Tensor& w) const {
    const at::Tensor left = at::cat({v, w}, 1), right = at::cat({w, v}, 1);
    const std::int64_t size = n_ - start, width = left.size(1);
    kernels::matrix_product_cpu(
        {.a = {left.const_data_ptr<double>(), width, kernels::Stored::rows},
         .b = {right.const_data_ptr<double>(), width, kernels::Stored::columns},
         .c = trailing(start),
         .stride = n_,
         .m = size,
         .n = size,
         .k = width,
         .alpha = -1,
         .beta = 1,
         .lower = true},
        product_threads());
  }

 private:
  double* trailing(std::int64_t start) const { return a_.data_ptr<double>() + start * (n_ + 1); }

  const at::Tensor& a_;
  std::int64_t n_;
};

template <typename Matrix>
at::Tensor reduce(const at::Tensor& a, std::int64_t width) {
  constexpr Multiplier by = Matrix::kBy;
  const std::int64_t n = a.size(0);
  const Matrix matrix(a);
  for (std::int64_t k = 0; k + width + 1 < n; k += width) {
    const std::int64_t start = k + width;
    at::Tensor panel = matrix.panel(k, start);
    const Reflections q = factor_panel(panel, by);
    panel.zero_();
    panel.narrow(0, 0, q.r.size(0)).copy_(q.r);
    at::Tensor w = product(matrix.multiply(start, q.v), q.t, by);
    const at::Tensor inner = product(q.t.t(), product(q.v.t(), w, by), by);
    w.sub_(product(q.v, inner, by), 0.5);
    matrix.update(start, q.v, w);
  }
  at::Tensor band = at::zeros({n, 2 * width}, a.options());
  for (std::int64_t i = 0; i <= std::min(width, n - 1); ++i) {
    band.select(1, i).narrow(0, 0, n - i).copy_(matrix.diagonal(i));
  }
  return band;
}

}  // namespace

at::Tensor reduce_to_band(const at::Tensor& a, std::int64_t width) {
  return reduce_to_band(a, width, multiplier_for(a));
}

at::Tensor reduce_to_band(const at::Tensor& a, std::int64_t width, Multiplier by) {
  return by == Multiplier::own ? reduce<Lower>(a, width) : reduce<Blocks>(a, width);
}

}  // namespace subspace
