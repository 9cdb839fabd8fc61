#include "lora/shared_basis.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/small_svd.h"
#include "spectrum/product.h"

namespace subspace {
namespace {

void decompose(kernels::SmallSvd& svd, const at::Tensor& x) {
  if (svd.decompose(x.const_data_ptr<double>(), x.size(0), x.size(1), x.stride(0))) return;
  fail(ErrorCode::NotFinite,
       "what heads share of a change has a NaN or an infinity, or its singular values did not "
       "converge; check the weights and the adapter");
}

at::Tensor left_of(kernels::SmallSvd& svd, const at::Tensor& x) {
  at::Tensor out = at::empty({x.size(0), std::min(x.size(0), x.size(1))}, at::kDouble);
  svd.left(out.size(1), out.data_ptr<double>());
  return out;
}

/// One change on the left of a circuit; transposed circuits bring those on the right here.
void find_basis(const Piece& piece, const at::Tensor& other, std::int64_t heads, SharedBasis& out) {
  const at::Tensor span = piece.span[0].contiguous();
  kernels::SmallSvd svd;
  decompose(svd, span);
  const at::Tensor q = left_of(svd, span);
  at::Tensor v = at::empty({span.size(1), q.size(1)}, at::kDouble);
  svd.right(q.size(1), v.data_ptr<double>());
  const at::Tensor r = v.t() * at::tensor(svd.values(), at::kDouble).unsqueeze(1);
  // [H, r, f]: the terms in orthonormal coordinates on both sides
  const at::Tensor terms = product(product(r, for_heads(piece.coords, heads)), other.mT());
  const at::Tensor wide = terms.transpose(0, 1).reshape({q.size(1), -1});
  decompose(svd, wide);
  const at::Tensor u = left_of(svd, wide);
  out.values = at::tensor(svd.values(), at::kDouble);
  out.load = product(u.t(), terms).norm(2, 2).t().contiguous();
  out.directions = product(q, u);
}

/// The last row of every piece, the bias: base and what changes, [H, k].
struct BiasRow {
  at::Tensor base, delta;
};

BiasRow bias_row(const Side& side, std::int64_t heads) {
  Side last = side;
  for (Piece& piece : last.pieces) piece.span = piece.span.narrow(1, side.rows - 1, 1);
  const at::Tensor base = for_heads(formed(last, true), heads).squeeze(1);
  return {base, for_heads(formed(last), heads).squeeze(1) - base};
}

/// x X_p^T summed over the pieces of a side without its last row, if that is a bias: [H, rows].
struct Applied {
  at::Tensor base, delta;
};

Applied apply(const Side& side, const at::Tensor& x, std::int64_t heads, bool has_bias) {
  const std::int64_t rows = side.rows - (has_bias ? 1 : 0);
  Applied out;
  for (const Piece& piece : side.pieces) {
    at::Tensor seen = x.unsqueeze(2);  // [H, k, 1]
    if (piece.coords.defined()) seen = at::bmm(for_heads(piece.coords, heads), seen);
    const at::Tensor part = heads_product(piece.span.narrow(1, 0, rows), seen).squeeze(2);
    if (!out.base.defined()) {
      out.base = part;
      out.delta = at::zeros_like(part);
    } else {
      out.delta = out.delta + part;
    }
  }
  return out;
}

/// Norms of x Y^T, x' Y'^T and of their difference dx Y'^T + x dY^T.
at::Tensor sizes_of(const BiasRow& row, const Side& side, std::int64_t heads, bool has_bias) {
  const Applied base = apply(side, row.base, heads, has_bias);
  const Applied added = apply(side, row.delta, heads, has_bias);
  const at::Tensor delta = added.base + added.delta + base.delta;
  return at::stack({base.base, base.base + delta, delta}, 1).norm(2, 2).to(at::kCPU);
}

}  // namespace

std::vector<SharedBasis> shared_bases(const CircuitProducts& products, const Frames& frames) {
  const Circuit &still = products.still, cores = at_offset(frames.circuit, 0);
  std::vector<SharedBasis> out;
  std::vector<const Piece*> pieces;
  std::vector<at::Tensor> others;
  const auto add = [&](const Side& side, const Side& other, bool read) {
    const at::Tensor base = for_heads(formed(other, /*base_only=*/true), still.heads);
    for (const Piece& piece : side.pieces) {
      if (!shared_by_heads(piece, side.width)) continue;
      out.emplace_back();
      out.back().change = term_name(still, piece.set);
      out.back().read = read;
      pieces.push_back(&piece);
      others.push_back(base);
    }
  };
  add(still.left, cores.right, true);
  add(still.right, cores.left, false);
  at::parallel_for(
      0, static_cast<std::int64_t>(out.size()), 1, [&](std::int64_t begin, std::int64_t end) {
        for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
          find_basis(*pieces[i], others[i], still.heads, out[i]);
        }
      });
  return out;
}

std::vector<SharedBasis> shared_bases(const Circuit& circuit, const Frames& frames) {
  std::vector<CircuitProducts> one(1);
  one[0].circuit = circuit;
  one[0].still = at_offset(circuit, 0);
  fetch(one);
  return shared_bases(one[0], frames);
}

BiasMetrics bias_metrics(const std::vector<Circuit>& homogeneous) {
  BiasMetrics out;
  for (const Circuit& given : homogeneous) {
    const Circuit circuit = at_offset(given, 0);
    const BiasRow left = bias_row(circuit.left, circuit.heads);
    if (circuit.kind == Circuit::Kind::vo) {
      out.constant = sizes_of(left, circuit.right, circuit.heads, false);
    } else {
      out.key_prior = sizes_of(left, circuit.right, circuit.heads, true);
      out.query_only =
          sizes_of(bias_row(circuit.right, circuit.heads), circuit.left, circuit.heads, true);
    }
  }
  return out;
}

}  // namespace subspace
