#include "spectrum/gram.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace subspace {
namespace {

/// Rows of the result at a time: enough for the products to run at full speed (MKL does wide and
/// flat ones a third faster than high and narrow ones), and few enough that the half of the
/// diagonal blocks which is computed in vain stays small.
constexpr std::int64_t kBlock = 512;
/// Rows of X that are weighted at a time: the result is read and written once for each such part.
constexpr std::int64_t kSlab = 512;

/// left^T right for a symmetric product by the library; right(j, width) gives the columns
/// [j, j + width) of the right-hand side.
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

/// The lower triangle of beta `out` + left^T diag(w) right, of which it is known that it is
/// symmetric; matrices or batches of them, w [m] or undefined.
void add_symmetric(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right,
                   const at::Tensor& w, double beta) {
  const std::int64_t n = out.size(-1);
  at::Tensor left_kept, right_kept;
  kernels::matrix_product_cpu({.a = product_operand(left.transpose(-2, -1), left_kept),
                               .b = product_operand(right, right_kept),
                               .c = out.data_ptr<double>(),
                               .stride = n,
                               .batch_stride = n * n,
                               .m = n,
                               .n = n,
                               .k = left.size(-2),
                               .batch = out.dim() == 3 ? out.size(0) : 1,
                               .beta = beta,
                               .weights = w.defined() ? w.const_data_ptr<double>() : nullptr,
                               .lower = true},
                              product_threads());
}

at::Tensor mirrored(const at::Tensor& out) {
  const std::int64_t n = out.size(-1), count = out.dim() == 3 ? out.size(0) : 1;
  for (std::int64_t i = 0; i < count; ++i) {
    kernels::mirror_lower(out.data_ptr<double>() + i * n * n, n, n, product_threads());
  }
  return out;
}

at::Tensor own_gram(const at::Tensor& x, const at::Tensor& w) {
  const at::Tensor out = at::empty({x.size(1), x.size(1)}, x.options());
  add_symmetric(out, x, x, w, 0);
  return mirrored(out);
}

}  // namespace

at::Tensor gram_of_columns(const at::Tensor& x) { return gram_of_columns(x, multiplier_for(x)); }

at::Tensor gram_of_columns(const at::Tensor& x, Multiplier by) {
  if (by == Multiplier::own) return own_gram(x, {});
  return symmetric_product(
      x, [&](std::int64_t j, std::int64_t width) { return x.narrow(1, j, width); });
}

at::Tensor gram_of_columns(const at::Tensor& x, const at::Tensor& w) {
  return gram_of_columns(x, w, multiplier_for(x));
}

at::Tensor gram_of_columns(const at::Tensor& x, const at::Tensor& w, Multiplier by) {
  if (by == Multiplier::own) return own_gram(x, w.contiguous());
  return symmetric_product(x, [&](std::int64_t j, std::int64_t width) {
    return x.narrow(1, j, width) * w.unsqueeze(1);
  });
}

at::Tensor weighted_gram(const at::Tensor& x, const at::Tensor& w) {
  return weighted_gram(x, w, multiplier_for(x));
}

at::Tensor weighted_gram(const at::Tensor& x, const at::Tensor& w, Multiplier by) {
  const std::int64_t heads = x.size(0), k = x.size(1), n = x.size(2);
  if (by == Multiplier::library) {
    return symmetric_product(x.reshape({-1, n}), [&](std::int64_t j, std::int64_t width) {
      return at::bmm(w, x.narrow(2, j, width)).reshape({-1, width});
    });
  }
  const at::Tensor out = at::zeros({n, n}, x.options());
  const std::int64_t step = std::max<std::int64_t>(1, kSlab / std::max<std::int64_t>(1, k));
  for (std::int64_t head = 0; head < heads; head += step) {
    const std::int64_t count = std::min(step, heads - head);
    const at::Tensor some = x.narrow(0, head, count);
    const at::Tensor weighted = product(w.narrow(0, head, count), some, by);
    add_symmetric(out, some.reshape({-1, n}), weighted.view({-1, n}), {}, 1);
  }
  return mirrored(out);
}

at::Tensor gram_of_heads(const at::Tensor& x) { return gram_of_heads(x, multiplier_for(x)); }

at::Tensor gram_of_heads(const at::Tensor& x, Multiplier by) {
  if (by == Multiplier::library) return at::matmul(x.transpose(1, 2), x);
  const at::Tensor out = at::empty({x.size(0), x.size(2), x.size(2)}, x.options());
  add_symmetric(out, x, x, {}, 0);
  return mirrored(out);
}

}  // namespace subspace
