#include "spectrum/gram.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace subspace {
namespace {

/// Columns of the result at a time: wide products run at full speed, and the right-hand side may
/// need a temporary.
constexpr std::int64_t kBlock = 1024;
/// Of a diagonal block half is computed in vain, so it is split down to this width.
constexpr std::int64_t kDiagonal = 256;

/// out = left^T right, known to be symmetric.
void diagonal_block(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right) {
  const std::int64_t n = out.size(0), half = n / 2;
  at::Tensor target = out;
  if (n <= kDiagonal) {
    at::mm_out(target, left.t(), right);
    return;
  }
  diagonal_block(out.narrow(0, 0, half).narrow(1, 0, half), left.narrow(1, 0, half),
                 right.narrow(1, 0, half));
  diagonal_block(out.narrow(0, half, n - half).narrow(1, half, n - half),
                 left.narrow(1, half, n - half), right.narrow(1, half, n - half));
  target = out.narrow(0, half, n - half).narrow(1, 0, half);
  at::mm_out(target, left.narrow(1, half, n - half).t(), right.narrow(1, 0, half));
  out.narrow(0, 0, half).narrow(1, half, n - half).copy_(target.t());
}

/// left^T right for a symmetric product; right(j, width) gives the columns [j, j + width) of the
/// right-hand side.
template <typename Right>
at::Tensor symmetric_product(const at::Tensor& left, Right right) {
  const std::int64_t n = left.size(1);
  at::Tensor out = at::empty({n, n}, left.options());
  for (std::int64_t j = 0; j < n; j += kBlock) {
    const std::int64_t width = std::min(kBlock, n - j), below = n - j - width;
    const at::Tensor columns = right(j, width);
    diagonal_block(out.narrow(0, j, width).narrow(1, j, width), left.narrow(1, j, width), columns);
    if (below == 0) continue;
    at::Tensor under = out.narrow(0, j + width, below).narrow(1, j, width);
    at::mm_out(under, left.narrow(1, j + width, below).t(), columns);
    out.narrow(0, j, width).narrow(1, j + width, below).copy_(under.t());
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
