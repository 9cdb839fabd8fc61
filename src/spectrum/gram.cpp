#include "spectrum/gram.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace subspace {
namespace {

/// Wide enough for the matrix product to run at full speed, narrow enough that the half of the
/// diagonal blocks which is computed in vain stays small.
constexpr std::int64_t kBlock = 512;

/// lower(j, width): columns [j, j + width) of the result, rows from j on.
template <typename Lower>
at::Tensor symmetric_by_blocks(std::int64_t n, const at::TensorOptions& options, Lower lower) {
  at::Tensor out = at::empty({n, n}, options);
  for (std::int64_t j = 0; j < n; j += kBlock) {
    const std::int64_t width = std::min(kBlock, n - j);
    const at::Tensor column = lower(j, width);
    out.narrow(0, j, n - j).narrow(1, j, width).copy_(column);
    if (j + width < n) {
      out.narrow(0, j, width)
          .narrow(1, j + width, n - j - width)
          .copy_(column.narrow(0, width, n - j - width).t());
    }
  }
  return out;
}

}  // namespace

at::Tensor gram_of_columns(const at::Tensor& x) {
  const std::int64_t n = x.size(1);
  return symmetric_by_blocks(n, x.options(), [&](std::int64_t j, std::int64_t width) {
    return at::mm(x.narrow(1, j, n - j).t(), x.narrow(1, j, width));
  });
}

at::Tensor gram_of_columns(const at::Tensor& x, const at::Tensor& w) {
  const std::int64_t n = x.size(1);
  return symmetric_by_blocks(n, x.options(), [&](std::int64_t j, std::int64_t width) {
    return at::mm(x.narrow(1, j, n - j).t(), x.narrow(1, j, width) * w.unsqueeze(1));
  });
}

at::Tensor weighted_gram(const at::Tensor& x, const at::Tensor& w) {
  const std::int64_t n = x.size(2);
  const at::Tensor flat = x.reshape({-1, n});
  return symmetric_by_blocks(n, x.options(), [&](std::int64_t j, std::int64_t width) {
    const at::Tensor weighted = at::bmm(w, x.narrow(2, j, width)).reshape({-1, width});
    return at::mm(flat.narrow(1, j, n - j).t(), weighted);
  });
}

at::Tensor gram_of_heads(const at::Tensor& x) { return at::matmul(x.transpose(1, 2), x); }

}  // namespace subspace
