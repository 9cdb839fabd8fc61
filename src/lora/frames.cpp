#include "lora/frames.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "kernels/small_cholesky.h"
#include "lora/spans.h"
#include "spectrum/product.h"

namespace subspace {
namespace {

/// The most that a head's matrices side by side may lie within each other's span, as the sine of a
/// column's angle to those before it, for their Gram matrix to be as good as Householder's
/// reflections: what it loses is about eps over the square of this, 2e-12 of a column's square.
constexpr double kLeastSine = 1e-2;

/// R of X = Q R as the Cholesky factor of X^T X: no pass over X for each column. Undefined where
/// that would cost digits.
at::Tensor triangle_of_gram(const at::Tensor& given) {
  const at::Tensor gram = given.contiguous();
  const std::int64_t n = gram.size(0);
  at::Tensor r = at::empty({n, n}, at::kDouble);
  const double* g = gram.const_data_ptr<double>();
  if (!kernels::small_cholesky(g, n, r.data_ptr<double>())) return {};
  const double* diagonal = r.const_data_ptr<double>();
  for (std::int64_t i = 0; i < n * n; i += n + 1) {
    if (!(diagonal[i] > kLeastSine * std::sqrt(g[i]))) return {};
  }
  return r;
}

/// R of the spans side by side, one for each of `count` matrices: [count, <= P, P] on the CPU, from
/// their Gram matrices if those are known already.
at::Tensor triangle(const Spans& spans, std::int64_t count, const at::Tensor& grams) {
  const std::int64_t d = spans.tensors[0].size(1), width = spans.width();
  at::Tensor out = at::empty({count, std::min(d, width), width}, at::kDouble);
  // Put together a matrix at a time: what a thread factors is still in its cache, and a layer's
  // matrices are not in memory twice.
  at::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      at::Tensor x, fast;
      if (!grams.defined()) x = side_by_side(spans, i, count);
      if (d >= width) fast = triangle_of_gram(grams.defined() ? grams[i] : product(x.t(), x));
      if (!fast.defined() && !x.defined()) x = side_by_side(spans, i, count).cpu();
      out[i].copy_(fast.defined() ? fast : std::get<1>(at::linalg_qr(x, "r")));
    }
  });
  return out;
}

/// The side with spans replaced by their columns of `triangle`.
Side in_coordinates(const Side& side, const Spans& spans, const at::Tensor& triangle) {
  std::vector<at::Tensor> columns;
  std::int64_t begin = 0;
  for (const at::Tensor& span : spans.tensors) {
    columns.push_back(triangle.narrow(2, begin, span.size(2)));
    begin += span.size(2);
  }
  Side out = side;
  out.rows = triangle.size(1);
  for (std::size_t p = 0; p < out.pieces.size(); ++p) {
    out.pieces[p].span = columns[spans.of_piece[p]];
  }
  return out;
}

/// Behind a latent the heads' matrices are products with a matrix that they share: in coordinates
/// of everything shared, a latent's width or a little more, they can be formed.
Side without_latent(const Side& side, bool batched) {
  if (!side.pieces.front().coords.defined()) return side;
  const Spans spans = spans_of(side);
  const std::int64_t count = spans.matrices();
  at::Tensor grams;
  if (batched) grams = batched_gram(spans, count).cpu();
  Side out =
      in_coordinates(side, spans, triangle(spans, count, grams).to(spans.tensors[0].device()));
  for (Piece& piece : out.pieces) {
    const bool thin = piece.coords.defined() && piece.coords.size(1) < side.width;
    if (thin && &piece != &out.pieces.front()) continue;
    piece = {piece.set, formed(piece), {}};
  }
  return out;
}

Side weighted(const Side& side, const at::Tensor& weight) {
  if (!weight.defined()) return side;
  if (weight.dim() != 2 || weight.size(1) != side.rows) {
    fail(ErrorCode::InvalidShape,
         "a weighting of {} columns for a side of {} rows; expected as many", weight.size(-1),
         side.rows);
  }
  const Spans spans = spans_of(side);
  std::vector<at::Tensor> products;
  for (const at::Tensor& span : spans.tensors) products.push_back(at::matmul(weight, span));
  Side out = side;
  out.rows = weight.size(0);
  for (std::size_t p = 0; p < out.pieces.size(); ++p) {
    out.pieces[p].span = products[spans.of_piece[p]];
  }
  return out;
}

SideProducts side_products(const Side& side, const at::Tensor& weight, bool batched) {
  SideProducts out;
  out.side = without_latent(weighted(side, weight), batched);
  if (batched) out.grams = batched_gram(spans_of(out.side), out.side.count);
  return out;
}

Side framed(const SideProducts& products) {
  const Spans spans = spans_of(products.side);
  return in_coordinates(products.side, spans, triangle(spans, products.side.count, products.grams));
}

/// The first coordinates, as many as the base has columns.
at::Tensor first_coordinates(const Side& side) {
  at::Tensor mask = at::zeros({side.count, side.rows}, side.pieces[0].span.options());
  mask.narrow(1, 0, std::min(side.width, side.rows)).fill_(1);
  return mask;
}

/// Q^T X for every piece, one Q a head.
Side turned_by(const Side& side, const at::Tensor& q, std::int64_t heads) {
  Side out = side;
  out.count = heads;
  for (Piece& piece : out.pieces) piece.span = at::bmm(q.mT(), for_heads(piece.span, heads));
  return out;
}

at::Tensor base_of(const Side& side, std::int64_t heads) {
  return for_heads(formed(side.pieces.front()), heads);
}

/// Whether every base M_i has the rank of its factors, to rounding: their triangular factors'
/// smallest singular values say so at little cost.
bool full_rank(const Side& side) {
  const std::int64_t k = std::min(side.width, side.rows);
  const at::Tensor top = side.pieces.front().span.narrow(1, 0, k);
  const at::Tensor diagonal = top.diagonal(0, 1, 2).abs();
  // A diagonal without small elements does not prove full rank, but a matrix on which it fails
  // would have to be made for that; far below this bound the singular values themselves decide.
  return side.rows >= side.width &&
         (diagonal.amin(1) > 1e-10 * diagonal.amax(1)).all().item<bool>();
}

/// Of a circuit with nothing between its sides.
Turned turned_sides(const Circuit& circuit, bool batched) {
  const Spans left = spans_of(circuit.left), right = spans_of(circuit.right);
  const at::Tensor between = products_between(right, left, batched);
  Turned out;
  for (std::size_t a = 0; a < circuit.left.pieces.size(); ++a) {
    for (std::size_t b = 0; b < circuit.right.pieces.size(); ++b) {
      const Piece &x = circuit.left.pieces[a], &y = circuit.right.pieces[b];
      at::Tensor part = part_between(between, right, right.of_piece[b], left, left.of_piece[a]);
      if (x.coords.defined()) part = heads_product(part, x.coords);
      if (y.coords.defined()) part = heads_product(y.coords.mT(), part);
      part = for_heads(part, circuit.heads);
      if (a == 0 && b == 0) {
        out.base = out.adapted = part;
      } else {
        out.adapted = out.adapted + part;
      }
    }
  }
  return out;
}

}  // namespace

CircuitProducts products_of(const Circuit& circuit, const ProductOptions& options) {
  const bool batched = options.batched || !circuit.left.pieces.front().span.is_cpu();
  CircuitProducts out;
  out.circuit = circuit;
  out.left = side_products(circuit.left, options.left_weight, batched);
  out.right = side_products(circuit.right, options.right_weight, batched);
  out.still = at_offset(circuit, 0);
  if (batched && options.turned && circuit.left.rows == circuit.right.rows) {
    out.turned = turned_sides(out.still, /*batched=*/true);
  }
  return out;
}

void fetch(std::vector<CircuitProducts>& products) {
  std::vector<at::Tensor*> wanted;
  for (CircuitProducts& one : products) {
    for (at::Tensor* tensor :
         {&one.left.grams, &one.right.grams, &one.turned.base, &one.turned.adapted}) {
      wanted.push_back(tensor);
    }
    for (Side* side : {&one.left.side, &one.right.side}) {
      for (Piece& piece : side->pieces) wanted.push_back(&piece.coords);
    }
    for (Side* side : {&one.still.left, &one.still.right}) {
      for (Piece& piece : side->pieces) {
        if (!shared_by_heads(piece, side->width)) continue;
        wanted.push_back(&piece.span);
        wanted.push_back(&piece.coords);
      }
    }
  }
  fetch(wanted);
}

bool shared_by_heads(const Piece& piece, std::int64_t width) {
  return std::popcount(piece.set) == 1 && piece.coords.defined() && piece.span.size(0) == 1 &&
         piece.span.size(2) <= width;
}

Frames frames_of(const Circuit& circuit, const at::Tensor& left_weight,
                 const at::Tensor& right_weight) {
  std::vector<CircuitProducts> one = {products_of(
      circuit, {.left_weight = left_weight, .right_weight = right_weight, .turned = false})};
  fetch(one);
  return frames_of(one[0]);
}

Frames frames_of(const CircuitProducts& products) {
  const Circuit& circuit = products.circuit;
  Frames out;
  out.circuit = circuit;
  out.circuit.left = framed(products.left);
  out.circuit.right = framed(products.right);
  Side &left = out.circuit.left, &right = out.circuit.right;
  if (full_rank(left) && full_rank(right)) {
    out.left_base = first_coordinates(left);
    out.right_base = first_coordinates(right);
    return out;
  }
  const std::int64_t heads = circuit.heads;
  const auto [u, s, vh] =
      at::linalg_svd(at::bmm(base_of(left, heads), base_of(right, heads).mT()), true);
  const double tolerance =
      static_cast<double>(std::max(left.rows, right.rows)) * std::numeric_limits<double>::epsilon();
  const at::Tensor kept = (s > tolerance * s.narrow(1, 0, 1)).to(s.scalar_type());
  const auto mask = [&](std::int64_t rows) {
    at::Tensor whole = at::zeros({heads, rows}, s.options());
    whole.narrow(1, 0, kept.size(1)).copy_(kept);
    return whole;
  };
  left = turned_by(left, u, heads);
  right = turned_by(right, vh.mT(), heads);
  out.left_base = mask(left.rows);
  out.right_base = mask(right.rows);
  return out;
}

Turned turned(const CircuitProducts& products) {
  const Circuit& circuit = products.still;
  if (circuit.left.rows != circuit.right.rows) {
    fail(ErrorCode::InvalidShape, "layer {}: {} goes between spaces of {} and {}: no eigenvalues",
         circuit.layer, circuit.name(), circuit.left.rows, circuit.right.rows);
  }
  return products.turned.base.defined() ? products.turned
                                        : turned_sides(circuit, /*batched=*/false);
}

}  // namespace subspace
