#include "lora/frames.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "spectrum/product.h"

namespace subspace {
namespace {

/// The spans of a side, each once, and which of them every piece has.
struct Spans {
  std::vector<at::Tensor> tensors;
  std::vector<std::size_t> of_piece;
};

Spans spans_of(const Side& side) {
  Spans spans;
  for (const Piece& piece : side.pieces) {
    std::size_t place = 0;
    while (place < spans.tensors.size() && !spans.tensors[place].is_same(piece.span)) ++place;
    if (place == spans.tensors.size()) spans.tensors.push_back(piece.span);
    spans.of_piece.push_back(place);
  }
  return spans;
}

std::int64_t total_width(const std::vector<at::Tensor>& spans) {
  std::int64_t width = 0;
  for (const at::Tensor& span : spans) width += span.size(2);
  return width;
}

std::int64_t matrices_of(const Spans& spans) {
  std::int64_t count = 1;
  for (const at::Tensor& span : spans.tensors) count = std::max(count, span.size(0));
  return count;
}

/// The most that a head's matrices side by side may lie within each other's span, as the sine of a
/// column's angle to those before it, for their Gram matrix to be as good as Householder's
/// reflections: what it loses is about eps over the square of this, 2e-12 of a column's square.
constexpr double kLeastSine = 1e-2;

/// The spans of one of `count` heads side by side, [d, P], copied along the memory of the first.
at::Tensor side_by_side(const std::vector<at::Tensor>& spans, std::int64_t head,
                        std::int64_t count) {
  const bool columns = spans[0].stride(1) == 1;
  std::vector<at::Tensor> parts;
  for (const at::Tensor& span : spans) {
    const at::Tensor one = span[head / (count / span.size(0))];
    parts.push_back(columns ? one.t() : one);
  }
  const at::Tensor all = parts.size() == 1 ? parts[0] : at::cat(parts, columns ? 0 : 1);
  return columns ? all.t() : all;
}

/// R of X = Q R as the Cholesky factor of X^T X: one product and no pass over X for each column.
/// Undefined where that would cost digits.
at::Tensor triangle_of_gram(const at::Tensor& x) {
  if (x.size(0) < x.size(1)) return {};
  const at::Tensor gram = product(x.t(), x);
  const auto [r, failed] = at::linalg_cholesky_ex(gram, /*upper=*/true);
  if (failed.item<int>() != 0) return {};
  const at::Tensor sines = r.diagonal() / gram.diagonal().sqrt();
  return sines.min().item<double>() > kLeastSine ? r : at::Tensor{};
}

/// R of the spans side by side, one for each of `count` matrices: [count, <= P, P].
at::Tensor triangle(const std::vector<at::Tensor>& spans, std::int64_t count) {
  if (!spans[0].is_cpu()) {
    std::vector<at::Tensor> expanded;
    for (const at::Tensor& span : spans) expanded.push_back(for_heads(span, count));
    return triangular(at::cat(expanded, 2));
  }
  const std::int64_t width = total_width(spans), rows = std::min(spans[0].size(1), width);
  at::Tensor out = at::empty({count, rows, width}, spans[0].options());
  // Put together a matrix at a time: what a thread factors is still in its cache, and a layer's
  // matrices are not in memory twice.
  at::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const at::Tensor x = side_by_side(spans, i, count);
      const at::Tensor fast = triangle_of_gram(x);
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
Side without_latent(const Side& side) {
  if (!side.pieces.front().coords.defined()) return side;
  const Spans spans = spans_of(side);
  const std::int64_t count = matrices_of(spans);
  Side out = in_coordinates(side, spans, triangle(spans.tensors, count));
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

Side framed(const Side& side, const at::Tensor& weight) {
  const Side direct = without_latent(weighted(side, weight));
  const Spans spans = spans_of(direct);
  return in_coordinates(direct, spans, triangle(spans.tensors, direct.count));
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

}  // namespace

Frames frames_of(const Circuit& circuit, const at::Tensor& left_weight,
                 const at::Tensor& right_weight) {
  Frames out;
  out.circuit = circuit;
  out.circuit.left = framed(circuit.left, left_weight);
  out.circuit.right = framed(circuit.right, right_weight);
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

namespace {

/// Y^T X between every span of the right and every one of the left, by [right][left]. On the CPU a
/// head's spans go through one product: thin ones alone would cost as much as all together.
std::vector<std::vector<at::Tensor>> products_between(const Spans& right, const Spans& left) {
  std::vector<std::vector<at::Tensor>> out(right.tensors.size());
  if (!left.tensors[0].is_cpu()) {
    for (std::size_t b = 0; b < out.size(); ++b) {
      for (const at::Tensor& span : left.tensors) {
        out[b].push_back(heads_product(right.tensors[b].mT(), span));
      }
    }
    return out;
  }
  const std::int64_t rights = matrices_of(right), lefts = matrices_of(left);
  const std::int64_t count = std::max(rights, lefts);
  at::Tensor all = at::empty({count, total_width(right.tensors), total_width(left.tensors)},
                             left.tensors[0].options());
  at::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
    at::Tensor x, y;
    for (std::int64_t i = begin; i < end; ++i) {
      // Heads of a group read the same matrix.
      const auto renew = [&](at::Tensor& kept, const Spans& spans, std::int64_t matrices) {
        const std::int64_t each = count / matrices;
        if (!kept.defined() || i % each == 0) {
          kept = side_by_side(spans.tensors, i / each, matrices);
        }
      };
      renew(x, left, lefts);
      renew(y, right, rights);
      all[i].copy_(product(y.t(), x));
    }
  });
  std::int64_t row = 0;
  for (std::size_t b = 0; b < out.size(); ++b) {
    const at::Tensor rows = all.narrow(1, row, right.tensors[b].size(2));
    row += rows.size(1);
    std::int64_t column = 0;
    for (const at::Tensor& span : left.tensors) {
      out[b].push_back(rows.narrow(2, column, span.size(2)));
      column += span.size(2);
    }
  }
  return out;
}

}  // namespace

Turned turned(const Circuit& circuit) {
  if (circuit.left.rows != circuit.right.rows) {
    fail(ErrorCode::InvalidShape, "layer {}: {} goes between spaces of {} and {}: no eigenvalues",
         circuit.layer, circuit.name(), circuit.left.rows, circuit.right.rows);
  }
  const Circuit direct = at_offset(circuit, 0);
  const Spans left = spans_of(direct.left), right = spans_of(direct.right);
  const auto between = products_between(right, left);
  Turned out;
  for (std::size_t a = 0; a < direct.left.pieces.size(); ++a) {
    for (std::size_t b = 0; b < direct.right.pieces.size(); ++b) {
      const Piece &x = direct.left.pieces[a], &y = direct.right.pieces[b];
      at::Tensor part = between[right.of_piece[b]][left.of_piece[a]];
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

}  // namespace subspace
