#include "spectrum/gram.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace subspace {
namespace {

/// Rows of the result at a time: enough for the products to run at full speed (MKL does wide and
/// flat ones a third faster than high and narrow ones), and few enough that the half of the
/// diagonal blocks which is computed in vain stays small.
constexpr std::int64_t kBlock = 512;

/// left^T right for a symmetric product; right(j, width) gives the columns [j, j + width) of the
/// right-hand side.
template <typename Right>
at::Tensor symmetric_product(const at::Tensor& left, Right right) {
  const std::int64_t n = left.size(1);
  at::Tensor out = at::empty({n, n}, left.options());
  for (std::int64_t j = 0; j < n; j += kBlock) {
    const std::int64_t width = std::min(kBlock, n - j), below = n - j - width;
    at::Tensor rows = out.narrow(0, j, width).narrow(1, j, n - j);
    at::mm_out(rows, right(j, width).t(), left.narrow(1, j, n - j));
    if (below == 0) continue;
    out.narrow(0, j + width, below).narrow(1, j, width).copy_(rows.narrow(1, width, below).t());
  }
  return out;
}

}  // namespace

at::Tensor gram_of_columns(const at::Tensor& x) {
  return symmetric_product(
      x, [&](std::int64_t j, std::int64_t width) { return x.narrow(1, j, width); });
}

at::Tensor gram_of_columns(const at::Tensor& x, const at::Tensor& w) {
  return symmetric_product(x, [&](std::int64_t j, std::int64_t width) {
    return x.narrow(1, j, width) * w.unsqueeze(1);
  });
}

at::Tensor weighted_gram(const at::Tensor& x, const at::Tensor& w) {
  const std::int64_t n = x.size(2);
  return symmetric_product(x.reshape({-1, n}), [&](std::int64_t j, std::int64_t width) {
    return at::bmm(w, x.narrow(2, j, width)).reshape({-1, width});
  });
}

at::Tensor gram_of_heads(const at::Tensor& x) { return at::matmul(x.transpose(1, 2), x); }

}  // namespace subspace
