#include "lora/low_rank.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "base/error.h"
#include "spectrum/product.h"

namespace subspace {
namespace {

/// The batch axes of `x` expanded to `batch`.
at::Tensor with_batch(const at::Tensor& x, at::IntArrayRef batch) {
  std::vector<std::int64_t> shape = batch.vec();
  shape.push_back(x.size(-2));
  shape.push_back(x.size(-1));
  return x.expand(shape);
}

at::IntArrayRef batch_of(const at::Tensor& x) { return x.sizes().slice(0, x.sizes().size() - 2); }

at::Tensor beside(const std::vector<at::Tensor>& parts) {
  std::vector<std::int64_t> batch;
  for (const at::Tensor& part : parts) {
    if (part.size(-2) != parts[0].size(-2)) {
      fail(ErrorCode::InvalidShape, "factors of a sum have {} and {} rows; expected the same",
           parts[0].size(-2), part.size(-2));
    }
    batch = at::infer_size(batch, batch_of(part));
  }
  std::vector<at::Tensor> expanded;
  for (const at::Tensor& part : parts) expanded.push_back(with_batch(part, batch));
  return at::cat(expanded, -1);
}

/// Householder, one matrix at a time on each thread: LAPACK's own threads gain nothing on matrices
/// this thin.
at::Tensor triangular_each(const at::Tensor& x) {
  const std::int64_t m = x.size(-2), p = x.size(-1), rows = std::min(m, p);
  const at::Tensor matrices = x.reshape({-1, m, p});
  const std::int64_t count = matrices.size(0);
  at::Tensor out = at::empty({count, rows, p}, x.options());
  at::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      out[i].copy_(std::get<1>(at::linalg_qr(matrices[i], "r")));
    }
  });
  std::vector<std::int64_t> shape = batch_of(x).vec();
  shape.push_back(rows);
  shape.push_back(p);
  return out.view(shape);
}

}  // namespace

at::Tensor LowRank::dense() const { return at::matmul(left, right.transpose(-2, -1)); }

LowRank sum(const std::vector<LowRank>& parts) {
  if (parts.empty()) fail(ErrorCode::InvalidShape, "a sum of no matrices has no shape");
  std::vector<at::Tensor> left, right;
  for (const LowRank& part : parts) {
    left.push_back(part.left);
    right.push_back(part.right);
  }
  return {beside(left), beside(right)};
}

LowRank product(const LowRank& a, const LowRank& b) {
  const at::Tensor middle = at::matmul(a.right.transpose(-2, -1), b.left);
  if (a.width() <= b.width()) return {a.left, at::matmul(b.right, middle.transpose(-2, -1))};
  return {at::matmul(a.left, middle), b.right};
}

at::Tensor inner(const LowRank& a, const LowRank& b) {
  return (at::matmul(a.left.transpose(-2, -1), b.left) *
          at::matmul(a.right.transpose(-2, -1), b.right))
      .sum({-2, -1});
}

at::Tensor triangular(const at::Tensor& x) {
  if (!x.is_cpu()) {
    if (at::Tensor fast = triangular_by_cholesky(x); fast.defined()) return fast;
    return std::get<1>(at::linalg_qr(x, "r"));
  }
  return triangular_each(x);
}

at::Tensor triangular_by_cholesky(const at::Tensor& x) {
  if (x.size(-2) < x.size(-1) || x.numel() == 0) return {};
  const auto factor = [](const at::Tensor& y) {
    return at::linalg_cholesky_ex(at::matmul(y.transpose(-2, -1), y), /*upper=*/true);
  };
  const auto [first, failed] = factor(x);
  if (failed.any().item<bool>()) return {};
  // Rounding hides condition numbers beyond 1/sqrt(eps) from Cholesky; the diagonal's spread
  // shows those that come near.
  const at::Tensor diagonal = first.diagonal(0, -2, -1);
  const at::Tensor spread = diagonal.amin(-1) / diagonal.amax(-1);
  if (!(spread.min().item<double>() > 1e-7)) return {};
  const at::Tensor unit = at::linalg_solve_triangular(first, x, /*upper=*/true, /*left=*/false);
  const auto [second, failed_again] = factor(unit);
  if (failed_again.any().item<bool>()) return {};
  return at::matmul(second, first);
}

at::Tensor core(const LowRank& a) {
  return at::matmul(triangular(a.left), triangular(a.right).transpose(-2, -1));
}

at::Tensor singular_values(const LowRank& a) {
  const at::Tensor values = at::linalg_svdvals(core(a));
  const std::int64_t most = std::min({a.left.size(-2), a.right.size(-2), a.width()});
  return values.narrow(-1, 0, most);
}

Triples singular_triples(const LowRank& a, std::int64_t count) {
  const auto [q_left, t_left] = at::linalg_qr(a.left);
  const auto [q_right, t_right] = at::linalg_qr(a.right);
  const auto [u, s, vh] =
      at::linalg_svd(at::matmul(t_left, t_right.transpose(-2, -1)), /*full_matrices=*/false);
  const std::int64_t kept = std::min(count, s.size(-1));
  return {at::matmul(q_left, u.narrow(-1, 0, kept)), s.narrow(-1, 0, kept),
          at::matmul(q_right, vh.transpose(-2, -1).narrow(-1, 0, kept))};
}

at::Tensor for_heads(const at::Tensor& x, std::int64_t heads) {
  const std::int64_t count = x.size(0);
  if (count == heads) return x;
  std::vector<std::int64_t> shape = x.sizes().vec();
  if (count == 1) {
    shape[0] = heads;
    return x.expand(shape);
  }
  return x.repeat_interleave(heads / count, 0);
}

at::Tensor heads_product(const at::Tensor& x, const at::Tensor& y) {
  const std::int64_t c = x.size(0), e = y.size(0);
  const std::int64_t m = x.size(1), p = x.size(2), n = y.size(2);
  if (c == e) return product(x, y);
  if (c > e) return product(x.reshape({e, c / e * m, p}), y).view({c, m, n});
  const at::Tensor wide = y.reshape({c, e / c, p, n}).transpose(1, 2).reshape({c, p, e / c * n});
  return product(x, wide).view({c, m, e / c, n}).transpose(1, 2).reshape({e, m, n});
}

}  // namespace subspace
