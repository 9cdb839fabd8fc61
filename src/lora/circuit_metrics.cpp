#include "lora/circuit_metrics.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "lora/head_spectra.h"

namespace subspace {
namespace {

/// Heads worked on at once by one thread: their Gram matrices stay in its cache.
constexpr std::int64_t kHeadsAtOnce = 2;

Cores cores_of(const Side& side, const at::Tensor& base, std::int64_t heads) {
  Cores cores;
  for (const Piece& piece : side.pieces) {
    cores.pieces.push_back(for_heads(formed(piece), heads));
  }
  cores.base = for_heads(base, heads);
  const std::int64_t first = std::min(side.width, side.rows);
  const bool leading = cores.base.narrow(1, 0, first).all().item<bool>() &&
                       !cores.base.narrow(1, first, side.rows - first).any().item<bool>();
  cores.inside = leading ? first : Cores::kScattered;
  return cores;
}

/// Gram matrices, as vectors (Offsets::vectors), of what a side has within the base's span or
/// outside of it.
struct Half {
  at::Tensor base, delta, whole;  ///< X_0, dX, X' with themselves
  at::Tensor crossed;             ///< dX^T X_0 on the left, Y'^T dY on the right
};

/// One side of some heads, cut by the base's span.
struct Parts {
  at::Tensor base, whole, delta;  // [h, f, k]
  at::Tensor grams;               // [h, pieces, pieces, k^2], of all rows
  Half in, out, all;

  Parts(const Cores& cores, const Offsets& window, bool left) : left_(left), window_(window) {
    base = cores.pieces[0];
    delta = at::zeros_like(base);
    for (std::size_t p = 1; p < cores.pieces.size(); ++p) delta = delta + cores.pieces[p];
    whole = base + delta;
    std::vector<at::Tensor> within, outside;
    for (const at::Tensor& piece : cores.pieces) {
      within.push_back(cores.within(piece));
      outside.push_back(cores.outside(piece));
    }
    const at::Tensor inner = piece_grams(within), outer = piece_grams(outside);
    grams = inner + outer;
    in = half(inner), out = half(outer), all = half(grams);
  }

 private:
  at::Tensor piece_grams(const std::vector<at::Tensor>& pieces) const {
    const std::size_t n = pieces.size();
    std::vector<at::Tensor> found(n * n);
    for (std::size_t a = 0; a < n; ++a) {
      for (std::size_t b = 0; b <= a; ++b) {
        const at::Tensor gram = at::bmm(pieces[a].mT(), pieces[b]);
        found[a * n + b] = window_.vectors(gram);
        if (a != b) found[b * n + a] = window_.vectors(gram.mT());
      }
    }
    const auto count = static_cast<std::int64_t>(n);
    return at::stack(found, 1).view({base.size(0), count, count, -1});
  }

  Half half(const at::Tensor& all_pairs) const {
    const std::int64_t changes = all_pairs.size(1) - 1;
    const at::Tensor with_base = all_pairs.select(2, 0),
                     by_change = all_pairs.narrow(2, 1, changes);
    return {with_base.select(1, 0), by_change.narrow(1, 1, changes).sum({1, 2}),
            all_pairs.sum({1, 2}),
            left_ ? with_base.narrow(1, 1, changes).sum(1) : by_change.sum({1, 2})};
  }

  bool left_;
  const Offsets& window_;
};

class HeadChunk {
 public:
  HeadChunk(Cores left, Cores right, const std::vector<Term>& terms, const Offsets& window,
            const Offsets& curve, const MetricOptions& options)
      : left_(std::move(left)),
        right_(std::move(right)),
        terms_(terms),
        window_(window),
        curve_(curve),
        options_(options),
        x_(left_, window, true),
        y_(right_, window, false),
        heads_(left_.base.size(0)) {}

  CircuitMetrics all() {
    sizes();
    term_gram();
    if (!curve_.list().empty()) at_offsets();
    return std::move(out_);
  }

 private:
  Half turned(const Half& half) const {
    const auto turn = [&](const at::Tensor& v) { return window_.mean_rotated(v); };
    return {turn(half.base), turn(half.delta), turn(half.whole), turn(half.crossed)};
  }

  /// |dM|^2 in four parts that are orthogonal; dM = dX Y'^T + X dY^T.
  void sizes() {
    const Half in = turned(y_.in), out = turned(y_.out);
    const auto dot = [](const at::Tensor& x, const at::Tensor& y) { return (x * y).sum(-1); };
    const auto part = [&](const Half& x, const Half& y) {
      return dot(x.delta, y.whole) + 2 * dot(x.crossed, y.crossed) + dot(x.base, y.delta);
    };
    out_.split =
        at::stack({part(x_.in, in), part(x_.out, in), part(x_.in, out), part(x_.out, out)}, 1);
    const at::Tensor whole = in.whole + out.whole;
    const auto fraction = [](const at::Tensor& inside, const at::Tensor& outside) {
      return inside / (inside + outside);
    };
    out_.align = at::stack({fraction(dot(x_.in.delta, whole), dot(x_.out.delta, whole)),
                            fraction(dot(x_.all.whole, in.delta), dot(x_.all.whole, out.delta))},
                           1);
  }

  void term_gram() {
    const auto nl = static_cast<std::int64_t>(left_.pieces.size());
    const auto nr = static_cast<std::int64_t>(right_.pieces.size());
    const auto count = static_cast<std::int64_t>(terms_.size());
    at::Tensor member = at::zeros({count, nl * nr}, left_.base.options());
    for (std::int64_t t = 0; t < count; ++t) {
      for (const auto& [a, b] : terms_[static_cast<std::size_t>(t)].pairs) {
        member[t][static_cast<std::int64_t>(a) * nr + static_cast<std::int64_t>(b)] = 1;
      }
    }
    const at::Tensor left = x_.grams.flatten(1, 2), right = y_.grams.flatten(1, 2);
    // [h, (a, a'), (b, b')] -> [h, (a, b), (a', b')]
    const auto by_pair = [&](const at::Tensor& products) {
      return products.view({heads_, nl, nl, nr, nr})
          .permute({0, 1, 3, 2, 4})
          .reshape({heads_, nl * nr, nl * nr});
    };
    const at::Tensor pairs = by_pair(at::bmm(left, window_.mean_rotated(right).mT()));
    out_.gram = at::matmul(at::matmul(member, pairs), member.t());
    const at::Tensor delta_gram = out_.gram.narrow(1, 1, count - 1).narrow(2, 1, count - 1);
    const at::Tensor base = out_.gram.select(1, 0).select(1, 0);
    // The four parts of the split have no cancellation between terms.
    const at::Tensor delta = out_.split.sum(1);
    const at::Tensor crossed = out_.gram.select(1, 0).narrow(1, 1, count - 1).sum(1);
    const at::Tensor adapted = base + 2 * crossed + delta;
    out_.fro = at::stack({base, adapted, delta}, 1).clamp_min(0).sqrt();
    if (options_.frequencies) by_frequency(left, right, member, nl, nr);
  }

  void by_frequency(const at::Tensor& left, const at::Tensor& right, const at::Tensor& member,
                    std::int64_t nl, std::int64_t nr) {
    // [h, (a, a'), (b, b'), planes + 1]
    const at::Tensor all = window_.by_frequency(left.unsqueeze(2), right.unsqueeze(1));
    const at::Tensor pairs = all.view({heads_, nl, nl, nr, nr, -1})
                                 .permute({0, 5, 1, 3, 2, 4})
                                 .reshape({heads_, -1, nl * nr, nl * nr});
    const at::Tensor terms =
        at::matmul(at::matmul(member, pairs), member.t()).diagonal(0, 2, 3).transpose(1, 2);
    const at::Tensor delta = window_.by_frequency(x_.all.delta, y_.all.whole) +
                             2 * window_.by_frequency(x_.all.crossed, y_.all.crossed) +
                             window_.by_frequency(x_.all.base, y_.all.delta);
    out_.frequency = at::cat({terms, delta.unsqueeze(1)}, 1);
  }

  void at_offsets() {
    const at::Tensor base = curve_.at_each(x_.all.base, y_.all.base);
    const at::Tensor delta = curve_.at_each(x_.all.delta, y_.all.whole) +
                             2 * curve_.at_each(x_.all.crossed, y_.all.crossed) +
                             curve_.at_each(x_.all.base, y_.all.delta);
    out_.curve = at::stack({base, delta.clamp_min(0)}, 2);
  }

  Cores left_, right_;
  const std::vector<Term>& terms_;
  const Offsets &window_, &curve_;
  const MetricOptions& options_;
  Parts x_, y_;
  std::int64_t heads_;
  CircuitMetrics out_;
};

Circuit expanded(const Circuit& circuit) {
  Circuit out = circuit;
  for (Side* side : {&out.left, &out.right}) {
    side->count = circuit.heads;
    for (Piece& piece : side->pieces) {
      piece.span = for_heads(piece.span, circuit.heads);
      if (piece.coords.defined()) {
        piece.coords = for_heads(piece.coords, circuit.heads);
      }
    }
  }
  return out;
}

CircuitMetrics joined(std::vector<CircuitMetrics> parts) {
  CircuitMetrics out = parts.front();
  for (at::Tensor CircuitMetrics::*member :
       {&CircuitMetrics::gram, &CircuitMetrics::fro, &CircuitMetrics::split, &CircuitMetrics::align,
        &CircuitMetrics::curve, &CircuitMetrics::frequency}) {
    std::vector<at::Tensor> rows;
    for (const CircuitMetrics& part : parts) rows.push_back(part.*member);
    if (rows[0].defined()) out.*member = at::cat(rows, 0);
  }
  return out;
}

/// What the spans of two random subspaces of widths p and q in d dimensions share.
void set_null(Angles& angles, std::int64_t rank, std::int64_t base, std::int64_t rows) {
  const auto p = static_cast<double>(rank), q = static_cast<double>(base);
  const auto d = static_cast<double>(rows);
  angles.null_mean = p * q / d;
  angles.null_deviation =
      d > 1 ? std::sqrt(2 * p * q * (d - p) * (d - q) / (d * d * (d - 1) * (d + 2))) : 0;
}

}  // namespace

CircuitProducts metric_products(const Circuit& circuit, const MetricOptions& options) {
  ProductOptions how;
  how.left_weight = options.weight;
  if (circuit.kind != Circuit::Kind::vo) how.right_weight = options.weight;
  how.turned = options.eigenvalues;
  how.batched = options.batched;
  return products_of(circuit, how);
}

CircuitMetrics circuit_metrics(const Circuit& circuit, const MetricOptions& options) {
  std::vector<CircuitProducts> one = {metric_products(circuit, options)};
  fetch(one);
  return circuit_metrics(one[0], frames_of(one[0]), options);
}

CircuitMetrics circuit_metrics(const CircuitProducts& products, const Frames& frames,
                               const MetricOptions& options) {
  const Circuit& circuit = products.circuit;
  const bool rotary = circuit.rotary.layout != Rotary::Layout::none;
  const std::int64_t heads = circuit.heads, k = circuit.left.width;
  const std::vector<Term> terms = terms_of(circuit);
  const Offsets window(circuit.rotary, k, rotary ? options.window : std::vector<std::int64_t>{0},
                       at::kCPU);
  const Offsets curve(circuit.rotary, k, rotary ? options.curve : std::vector<std::int64_t>{},
                      at::kCPU);
  const Circuit cores = expanded(frames.circuit);
  // Spectra are those at offset 0; YaRN's factor is in them.
  const Circuit still = at_offset(cores, 0);
  const Cores left = cores_of(cores.left, frames.left_base, heads);
  const Cores right = cores_of(cores.right, frames.right_base, heads);

  const std::int64_t chunks = (heads + kHeadsAtOnce - 1) / kHeadsAtOnce;
  std::vector<CircuitMetrics> parts(static_cast<std::size_t>(chunks));
  at::parallel_for(0, chunks, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t chunk = first; chunk < last; ++chunk) {
      const std::int64_t begin = chunk * kHeadsAtOnce;
      const std::int64_t count = std::min(kHeadsAtOnce, heads - begin);
      HeadChunk work(left.heads(begin, count), right.heads(begin, count), terms, window, curve,
                     options);
      parts[static_cast<std::size_t>(chunk)] = work.all();
    }
  });
  CircuitMetrics out = joined(std::move(parts));
  if (options.spectra) {
    find_spectra(still, left, right, out);
    find_angles(still, left, right, out);
  }
  out.circuit = circuit.name();
  out.rotary = rotary;
  for (const Term& term : terms) {
    out.terms.push_back(term.name);
    out.term_size.push_back(std::popcount(term.set));
  }
  const std::int64_t base_left = std::min(k, circuit.left.rows);
  const std::int64_t base_right = std::min(k, circuit.right.rows);
  out.null_read = static_cast<double>(base_left) / static_cast<double>(circuit.left.rows);
  out.null_write = static_cast<double>(base_right) / static_cast<double>(circuit.right.rows);
  for (Angles& angles : out.angles) {
    set_null(angles, angles.cosines.size(1), angles.read ? base_left : base_right,
             (angles.read ? circuit.left : circuit.right).rows);
  }
  out.rank_bound =
      std::min({delta_factors(still).width(), 2 * k, circuit.left.rows, circuit.right.rows});
  if (options.eigenvalues && circuit.left.rows == circuit.right.rows) {
    const Turned matrices = turned(products);
    const at::Tensor base = eigenvalue_ratio(matrices.base);
    const bool same = at::equal(matrices.base, matrices.adapted);
    out.eigen = at::stack({base, same ? base : eigenvalue_ratio(matrices.adapted)}, 1);
  }
  return out;
}

}  // namespace subspace
