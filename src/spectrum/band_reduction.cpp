#include "spectrum/band_reduction.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace subspace {
namespace {

/// Columns of the trailing matrix that are updated at once: half of a diagonal block is work in
/// vain, narrow products are slow.
constexpr std::int64_t kBlock = 512;

struct Reflections {
  at::Tensor v;  // [m, k] unit lower trapezoidal
  at::Tensor t;  // [k, k] upper triangular: (I - tau_1 v_1 v_1^T) .. (I - tau_k ..) = I - V T V^T
  at::Tensor r;  // [k, k] upper triangular
};

/// Column j of T: -tau_j T[:j, :j] (V[:, :j]^T v_j), and tau_j on the diagonal.
at::Tensor block_reflector(const at::Tensor& v, const at::Tensor& tau) {
  const std::int64_t k = v.size(1);
  const at::Tensor inner = at::mm(v.t(), v).contiguous();
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

Reflections factor_panel(const at::Tensor& panel) {
  const std::int64_t k = std::min(panel.size(0), panel.size(1));
  const auto [packed, tau] = at::geqrf(panel);
  at::Tensor v = packed.narrow(1, 0, k).tril(-1);
  v.diagonal().fill_(1);
  return {v.contiguous(), block_reflector(v, tau.contiguous()), packed.narrow(0, 0, k).triu()};
}

/// A V of a symmetric A of which the lower triangle is stored, a block column at a time.
at::Tensor multiply_symmetric(const at::Tensor& a, const at::Tensor& v) {
  const std::int64_t n = a.size(0);
  at::Tensor out = at::zeros_like(v);
  for (std::int64_t j = 0; j < n; j += kBlock) {
    const std::int64_t width = std::min(kBlock, n - j), below = n - j - width;
    at::Tensor diagonal = a.narrow(0, j, width).narrow(1, j, width).tril();
    diagonal += diagonal.tril(-1).t();
    at::Tensor rows = out.narrow(0, j, width);
    rows.addmm_(diagonal, v.narrow(0, j, width));
    if (below == 0) continue;
    const at::Tensor under = a.narrow(0, j + width, below).narrow(1, j, width);
    rows.addmm_(under.t(), v.narrow(0, j + width, below));
    out.narrow(0, j + width, below).addmm_(under, v.narrow(0, j, width));
  }
  return out;
}

/// A -= V W^T + W V^T, the lower triangle only (and what of the diagonal blocks is above it).
void update(const at::Tensor& a, const at::Tensor& v, const at::Tensor& w) {
  const std::int64_t n = a.size(0);
  const at::Tensor left = at::cat({v, w}, 1), right = at::cat({w, v}, 1);
  for (std::int64_t j = 0; j < n; j += kBlock) {
    const std::int64_t width = std::min(kBlock, n - j);
    at::Tensor block = a.narrow(0, j, n - j).narrow(1, j, width);
    block.addmm_(left.narrow(0, j, n - j), right.narrow(0, j, width).t(), 1, -1);
  }
}

}  // namespace

at::Tensor reduce_to_band(const at::Tensor& a, std::int64_t width) {
  const std::int64_t n = a.size(0);
  for (std::int64_t k = 0; k + width + 1 < n; k += width) {
    const std::int64_t rest = n - k - width;
    at::Tensor panel = a.narrow(0, k + width, rest).narrow(1, k, width);
    const Reflections q = factor_panel(panel);
    panel.zero_();
    panel.narrow(0, 0, q.r.size(0)).copy_(q.r);
    const at::Tensor trailing = a.narrow(0, k + width, rest).narrow(1, k + width, rest);
    at::Tensor w = at::mm(multiply_symmetric(trailing, q.v), q.t);
    const at::Tensor inner = at::mm(q.t.t(), at::mm(q.v.t(), w));
    w.addmm_(q.v, inner, 1, -0.5);
    update(trailing, q.v, w);
  }
  at::Tensor band = at::zeros({n, 2 * width}, a.options());
  for (std::int64_t i = 0; i <= std::min(width, n - 1); ++i) {
    band.select(1, i).narrow(0, 0, n - i).copy_(a.diagonal(-i));
  }
  return band;
}

}  // namespace subspace
