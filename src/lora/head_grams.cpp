#include "lora/head_grams.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "lora/spans.h"
#include "spectrum/product.h"

namespace subspace {
namespace {

using kernels::GramRows;

/// One tensor of a batch whose members heads share in turn.
struct OfHeads {
  at::Tensor x;  ///< [1 | groups | H, rows, columns], rows in one piece
  std::int64_t heads = 0;

  const double* head(std::int64_t i) const {
    return x.const_data_ptr<double>() + i / (heads / x.size(0)) * x.stride(0);
  }
};

/// X_a^T X_b of two pieces of a side, of what is inside the base's span or what is outside.
struct Pair {
  std::int64_t a = 0, b = 0, inside = 0;
  OfHeads c, w;            ///< w undefined: the matrix is c, which begins at `begin`
  std::int64_t begin = 0;  ///< of c among the numbers of a head
  std::int64_t w_begin = 0, w_row = 0, w_column = 0;

  GramRows rows(std::int64_t head) const {
    GramRows out;
    out.c = c.head(head) + begin;
    out.c_row = c.x.stride(1);
    if (!w.x.defined()) return out;
    out.w = w.head(head) + w_begin;
    out.w_row = w_row, out.w_column = w_column;
    out.p = std::min(w.x.size(1), c.x.size(1));
    return out;
  }
};

/// One side: its pieces as columns of one matrix Z, or of those times thin coordinates.
class SideGrams {
 public:
  SideGrams(const Side& side, const BaseSpan& base, const Offsets& offsets, std::int64_t heads)
      : heads_(heads) {
    gather(side, offsets);
    std::vector<at::Tensor> wide;
    const std::int64_t count = matrices(base);
    for (const at::Tensor& columns : columns_) wide.push_back(for_heads(columns, count));
    const at::Tensor z = at::cat(wide, 2);
    gram_[1] = gram(base.within(z));
    gram_[0] = gram(base.outside(z));
  }

  /// Of every pair of pieces, or of those with a <= b; without those that are zero for every head.
  std::vector<Pair> pairs(bool ordered) const {
    std::vector<Pair> out;
    const auto n = static_cast<std::int64_t>(parts_.size());
    for (const std::int64_t inside : {1, 0}) {
      for (std::int64_t a = 0; a < n; ++a) {
        for (std::int64_t b = ordered ? a : 0; b < n; ++b) {
          if (has(part(a), part(b), inside)) out.push_back(pair(a, b, inside));
        }
      }
    }
    return out;
  }

 private:
  struct Part {
    std::size_t place = 0;  ///< of its columns
    at::Tensor coords;      ///< [.., p, k], undefined: they are the piece
  };

  void gather(const Side& side, const Offsets& offsets) {
    const Spans spans = spans_of(side);
    std::vector<std::size_t> kept(spans.tensors.size(), kNone);
    for (std::size_t p = 0; p < side.pieces.size(); ++p) {
      const Piece& piece = side.pieces[p];
      const bool thin = piece.coords.defined() && piece.coords.size(1) <= side.width / 2;
      if (!thin) {
        parts_.push_back({add(offsets.ordered(formed(piece))), {}});
        continue;
      }
      std::size_t& place = kept[spans.of_piece[p]];
      if (place == kNone) place = add(piece.span);
      parts_.push_back({place, offsets.ordered(piece.coords).contiguous()});
    }
  }

  std::size_t add(const at::Tensor& columns) {
    columns_.push_back(columns);
    return columns_.size() - 1;
  }

  std::int64_t matrices(const BaseSpan& base) const {
    std::int64_t count = base.inside == BaseSpan::kScattered ? base.mask.size(0) : 1;
    for (const at::Tensor& columns : columns_) count = std::max(count, columns.size(0));
    return count;
  }

  static at::Tensor gram(const at::Tensor& z) { return product(z.mT(), z).contiguous(); }

  const Part& part(std::int64_t a) const { return parts_[static_cast<std::size_t>(a)]; }
  std::int64_t begin(const Part& part) const {
    std::int64_t before = 0;
    for (std::size_t j = 0; j < part.place; ++j) before += columns_[j].size(2);
    return before;
  }
  at::Tensor block(const Part& a, const Part& b, std::int64_t inside) const {
    return gram_[inside]
        .narrow(1, begin(a), columns_[a.place].size(2))
        .narrow(2, begin(b), columns_[b.place].size(2));
  }
  bool has(const Part& a, const Part& b, std::int64_t inside) const {
    return inside == 1 || block(a, b, inside).any().item<bool>();
  }

  Pair pair(std::int64_t a, std::int64_t b, std::int64_t inside) const {
    const Part &x = part(a), &y = part(b);
    const at::Tensor& gram = gram_[inside];
    const std::int64_t row = gram.stride(1), place = begin(x) * row + begin(y);
    Pair out{a, b, inside, {gram, heads_}, {}, place};
    if (x.coords.defined()) {
      out.w = {x.coords, heads_};
      out.w_row = 1, out.w_column = x.coords.stride(1);
      if (y.coords.defined()) {
        out.c.x = heads_product(block(x, y, inside), y.coords).contiguous();
        out.begin = 0;
      }
    } else if (y.coords.defined()) {
      out.w = out.c;
      out.w_begin = place, out.w_row = row, out.w_column = 1;
      out.c = {y.coords, heads_};
      out.begin = 0;
    }
    return out;
  }

  static constexpr std::size_t kNone = ~std::size_t{0};
  std::int64_t heads_;
  std::vector<at::Tensor> columns_;
  std::vector<Part> parts_;
  at::Tensor gram_[2];  ///< [count, Q, Q], of what is outside and what is inside
};

/// <X_a R Y_b^T, X_a' R Y_b'^T> of a head from what lies inside or outside on each side.
class Inner {
 public:
  Inner(const std::vector<Pair>& left, const std::vector<Pair>& right, std::int64_t pieces_left,
        std::int64_t pieces_right)
      : nl_(pieces_left), nr_(pieces_right), rights_(static_cast<std::int64_t>(right.size())) {
    left_.assign(static_cast<std::size_t>(2 * nl_ * nl_), -1);
    right_.assign(static_cast<std::size_t>(2 * nr_ * nr_), -1);
    for (std::size_t i = 0; i < left.size(); ++i) place(left_, nl_, left[i], i);
    for (std::size_t i = 0; i < right.size(); ++i) place(right_, nr_, right[i], i);
  }

  std::int64_t lefts() const { return nl_; }
  std::int64_t rights() const { return nr_; }

  /// X_a^T X_a' and Y_b^T Y_b', each of what is inside (1) or outside (0).
  double at(const double* found, std::int64_t in_left, std::int64_t a, std::int64_t a2,
            std::int64_t in_right, std::int64_t b, std::int64_t b2) const {
    // Only one order is there on the left; both transposed are the same.
    if (a > a2) return at(found, in_left, a2, a, in_right, b2, b);
    const std::int64_t l = left_[static_cast<std::size_t>((in_left * nl_ + a) * nl_ + a2)];
    const std::int64_t r = right_[static_cast<std::size_t>((in_right * nr_ + b) * nr_ + b2)];
    return l < 0 || r < 0 ? 0 : found[l * rights_ + r];
  }
  double at(const double* found, std::int64_t a, std::int64_t a2, std::int64_t b,
            std::int64_t b2) const {
    double sum = 0;
    for (const std::int64_t l : {1, 0}) {
      for (const std::int64_t r : {1, 0}) sum += at(found, l, a, a2, r, b, b2);
    }
    return sum;
  }

  /// Summed over pieces from a begin on.
  double sum(const double* found, std::int64_t in_left, std::int64_t in_right,
             const std::array<std::int64_t, 8>& ranges) const {
    double sum = 0;
    for (std::int64_t a = ranges[0]; a < ranges[1]; ++a) {
      for (std::int64_t a2 = ranges[2]; a2 < ranges[3]; ++a2) {
        for (std::int64_t b = ranges[4]; b < ranges[5]; ++b) {
          for (std::int64_t b2 = ranges[6]; b2 < ranges[7]; ++b2) {
            sum += at(found, in_left, a, a2, in_right, b, b2);
          }
        }
      }
    }
    return sum;
  }
  /// |dX Y'^T|^2 of such parts, <dX Y'^T, X_0 dY^T>, |X_0 dY^T|^2.
  double by_left(const double* found, std::int64_t l, std::int64_t r) const {
    return sum(found, l, r, {1, nl_, 1, nl_, 0, nr_, 0, nr_});
  }
  double crossed(const double* found, std::int64_t l, std::int64_t r) const {
    return sum(found, l, r, {1, nl_, 0, 1, 0, nr_, 1, nr_});
  }
  double by_right(const double* found, std::int64_t l, std::int64_t r) const {
    return sum(found, l, r, {0, 1, 0, 1, 1, nr_, 1, nr_});
  }
  /// |dM|^2; dM = dX Y'^T + X_0 dY^T.
  double delta(const double* found, std::int64_t l, std::int64_t r) const {
    return by_left(found, l, r) + 2 * crossed(found, l, r) + by_right(found, l, r);
  }
  /// |X' dY^T|^2
  double by_right_of_whole(const double* found, std::int64_t l, std::int64_t r) const {
    return sum(found, l, r, {0, nl_, 0, nl_, 1, nr_, 1, nr_});
  }

 private:
  static void place(std::vector<std::int64_t>& list, std::int64_t n, const Pair& pair,
                    std::size_t i) {
    list[static_cast<std::size_t>((pair.inside * n + pair.a) * n + pair.b)] =
        static_cast<std::int64_t>(i);
  }

  std::int64_t nl_, nr_, rights_;
  std::vector<std::int64_t> left_, right_;  ///< places by side of the span and pieces; -1: zero
};

/// Sums whose products are the squared sizes of base, and, three together, of delta: X_0 with Y_0;
/// dX with Y', 2 dX^T X_0 with Y'^T dY (both transposed), X_0 with dY.
struct Mixes {
  std::vector<double> left, right;
  static constexpr std::int64_t kCount = 4;

  Mixes(const std::vector<Pair>& lefts, const std::vector<Pair>& rights) {
    for (std::int64_t m = 0; m < kCount; ++m) {
      for (const Pair& p : lefts) left.push_back(of_left(m, p));
      for (const Pair& p : rights) right.push_back(of_right(m, p));
    }
  }

 private:
  static double of_left(std::int64_t m, const Pair& p) {
    const bool base = p.a == 0 && p.b == 0;
    if (m == 0 || m == 3) return base ? 1 : 0;
    if (m == 2) return p.a == 0 && p.b > 0 ? 2 : 0;
    // Pairs stand there in one order; Y'^T Y' is symmetric.
    if (p.a == 0) return 0;
    return p.a == p.b ? 1 : 2;
  }
  static double of_right(std::int64_t m, const Pair& p) {
    if (m == 0) return p.a == 0 && p.b == 0 ? 1 : 0;
    if (m == 1) return 1;
    if (m == 2) return p.a > 0 ? 1 : 0;
    return p.a > 0 && p.b > 0 ? 1 : 0;
  }
};

class Sizes {
 public:
  Sizes(const std::vector<Term>& terms, const Inner& inner, CircuitMetrics& out)
      : terms_(terms), inner_(inner), out_(out) {}

  void allocate(std::int64_t heads, std::int64_t offsets, std::int64_t planes) {
    const auto zeros = [&](std::vector<std::int64_t> shape) {
      shape.insert(shape.begin(), heads);
      return at::zeros(shape, at::kDouble);
    };
    const auto count = static_cast<std::int64_t>(terms_.size());
    out_.gram = zeros({count, count});
    out_.fro = zeros({3});
    out_.split = zeros({4});
    out_.align = zeros({2});
    if (offsets > 0) out_.curve = zeros({offsets, 2});
    if (planes > 0) out_.frequency = zeros({count + 1, planes});
  }

  void write(std::int64_t head, const double* mean) {
    double* split = row(out_.split, head);
    double *align = row(out_.align, head), *gram = row(out_.gram, head), *fro = row(out_.fro, head);
    double delta = 0;
    for (const std::int64_t r : {1, 0}) {
      for (const std::int64_t l : {1, 0}) delta += * split++ = inner_.delta(mean, l, r);
    }
    const auto left = [&](std::int64_t l) {
      return inner_.by_left(mean, l, 1) + inner_.by_left(mean, l, 0);
    };
    const auto right = [&](std::int64_t r) {
      return inner_.by_right_of_whole(mean, 1, r) + inner_.by_right_of_whole(mean, 0, r);
    };
    align[0] = left(1) / (left(1) + left(0));
    align[1] = right(1) / (right(1) + right(0));
    const std::size_t count = terms_.size();
    double crossed = 0;
    for (std::size_t s = 0; s < count; ++s) {
      for (std::size_t t = 0; t < count; ++t) gram[s * count + t] = between(mean, s, t);
      if (s > 0) crossed += gram[s];
    }
    // The four parts of the split have no cancellation between terms.
    const double squares[] = {gram[0], gram[0] + 2 * crossed + delta, delta};
    for (std::size_t j = 0; j < 3; ++j) fro[j] = std::sqrt(squares[j] < 0 ? 0 : squares[j]);
  }

  void write_curve(std::int64_t head, const double* each) {
    double* to = row(out_.curve, head);
    for (std::int64_t i = 0; i < 2 * out_.curve.size(1); ++i) {
      to[i] = i % 2 == 1 && each[i] < 0 ? 0 : each[i];
    }
  }

  /// `planes`: what each gives, one block of inner products after another.
  void write_frequencies(std::int64_t head, const double* planes, std::int64_t block) {
    double* to = row(out_.frequency, head);
    const std::int64_t count = out_.frequency.size(2);
    for (std::int64_t f = 0; f < count; ++f) {
      const double* found = planes + f * block;
      for (std::size_t t = 0; t < terms_.size(); ++t) {
        to[static_cast<std::int64_t>(t) * count + f] = between(found, t, t);
      }
      double delta = 0;
      for (const std::int64_t l : {1, 0}) {
        for (const std::int64_t r : {1, 0}) delta += inner_.delta(found, l, r);
      }
      to[static_cast<std::int64_t>(terms_.size()) * count + f] = delta;
    }
  }

 private:
  static double* row(const at::Tensor& x, std::int64_t head) {
    return x.data_ptr<double>() + head * x.stride(0);
  }

  /// <T_s, T_t>
  double between(const double* found, std::size_t s, std::size_t t) const {
    double sum = 0;
    for (const auto& [a, b] : terms_[s].pairs) {
      for (const auto& [a2, b2] : terms_[t].pairs) {
        sum += inner_.at(found, static_cast<std::int64_t>(a), static_cast<std::int64_t>(a2),
                         static_cast<std::int64_t>(b), static_cast<std::int64_t>(b2));
      }
    }
    return sum;
  }

  const std::vector<Term>& terms_;
  const Inner& inner_;
  CircuitMetrics& out_;
};

std::vector<GramRows> rows_of_head(const std::vector<Pair>& pairs, std::int64_t head) {
  std::vector<GramRows> out;
  for (const Pair& pair : pairs) out.push_back(pair.rows(head));
  return out;
}

}  // namespace

void find_sizes(const Circuit& circuit, const BaseSpan& left, const BaseSpan& right,
                const std::vector<Term>& terms, const Offsets& offsets, bool frequencies,
                CircuitMetrics& out) {
  const std::int64_t heads = circuit.heads;
  const std::vector<Pair> lefts =
      SideGrams(circuit.left, left, offsets, heads).pairs(/*ordered=*/true);
  const std::vector<Pair> rights =
      SideGrams(circuit.right, right, offsets, heads).pairs(/*ordered=*/false);
  const Inner inner(lefts, rights, static_cast<std::int64_t>(circuit.left.pieces.size()),
                    static_cast<std::int64_t>(circuit.right.pieces.size()));
  const Mixes mixes(lefts, rights);
  const kernels::TurnTables tables = offsets.tables();
  const std::int64_t planes = frequencies ? tables.planes + 1 : 0;
  Sizes sizes(terms, inner, out);
  sizes.allocate(heads, tables.offsets, planes);
  at::parallel_for(0, heads, 1, [&](std::int64_t begin, std::int64_t end) {
    const std::size_t block = lefts.size() * rights.size();
    std::vector<double> scratch, mean(block), each(static_cast<std::size_t>(2 * tables.offsets)),
        by_plane(static_cast<std::size_t>(planes) * block);
    for (std::int64_t head = begin; head < end; ++head) {
      const std::vector<GramRows> l = rows_of_head(lefts, head), r = rows_of_head(rights, head);
      kernels::turned_grams({.left = l.data(),
                             .lefts = static_cast<std::int64_t>(l.size()),
                             .right = r.data(),
                             .rights = static_cast<std::int64_t>(r.size()),
                             .tables = tables,
                             .mean = mean.data(),
                             .left_mix = mixes.left.data(),
                             .right_mix = mixes.right.data(),
                             .mixes = Mixes::kCount,
                             .each = each.empty() ? nullptr : each.data(),
                             .planes = by_plane.empty() ? nullptr : by_plane.data()},
                            scratch);
      sizes.write(head, mean.data());
      if (!each.empty()) sizes.write_curve(head, each.data());
      if (planes > 0) {
        sizes.write_frequencies(head, by_plane.data(), static_cast<std::int64_t>(block));
      }
    }
  });
}

}  // namespace subspace
