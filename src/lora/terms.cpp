#include "lora/terms.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <map>

#include "attention/fused.h"
#include "base/error.h"
#include "lora/pieces.h"

namespace subspace {
namespace {

/// Builds the circuits of one layer; each method returns the pieces of one side.
class Builder {
 public:
  Builder(const AttentionLayer& layer, const LayerChange& change, const CircuitOptions& options)
      : layer_(layer), change_(change), options_(options) {}

  std::vector<Circuit> all() {
    std::vector<Circuit> out;
    if (layer_.q.defined() && layer_.q.size(2) > 0) out.push_back(queries_to_keys());
    if (layer_.q_rope.defined() && layer_.kpe.defined()) out.push_back(rotary_part());
    out.push_back(values_to_output());
    return out;
  }

 private:
  Circuit start(Circuit::Kind kind) {
    names_ = SwitchNames{};
    Circuit circuit;
    circuit.kind = kind;
    circuit.layer = layer_.index;
    circuit.heads = layer_.heads();
    return circuit;
  }

  Circuit queries_to_keys() {
    Circuit circuit = start(Circuit::Kind::qk);
    auto left = queries(layer_.q, change_.q, layer_.q_bias, change_.q_bias);
    scale_columns(left, layer_.q_head, change_.q_head, "q_norm", names_);
    auto right = keys(layer_.k, change_.k, layer_.k_bias, change_.k_bias, "k");
    scale_columns(right, layer_.k_head, change_.k_head, "k_norm", names_);
    if (!layer_.q_rope.defined()) circuit.rotary = layer_.rotary;
    return finish(std::move(circuit), std::move(left), std::move(right));
  }

  Circuit rotary_part() {
    Circuit circuit = start(Circuit::Kind::qk_rope);
    auto left = queries(layer_.q_rope, change_.q_rope, {}, {});
    auto right = matrix("kv_a", layer_.kpe, change_.kpe);
    read_norm(right, layer_.input, change_.input, "norm");
    circuit.rotary = layer_.rotary;
    return finish(std::move(circuit), std::move(left), std::move(right));
  }

  Circuit values_to_output() {
    Circuit circuit = start(Circuit::Kind::vo);
    auto left = keys(layer_.v, change_.v, layer_.v_bias, change_.v_bias, "v");
    if (layer_.values_share_key) {
      scale_columns(left, layer_.k_head, change_.k_head, "k_norm", names_);
    }
    const bool latent = layer_.ob.defined();
    auto right =
        transposed_pieces({latent ? "o_a" : "o", layer_.index, layer_.o, change_.o}, names_);
    if (latent) {
      right =
          chained(transposed_pieces({"o_b", layer_.index, layer_.ob, change_.ob}, names_), right);
    }
    if (options_.fold_norm) {
      scale_written(right, layer_.output, change_.output, "output_norm", names_);
    }
    return finish(std::move(circuit), std::move(left), std::move(right));
  }

  /// Pieces of what reads the residual stream, or a latent of it.
  std::vector<Piece> queries(const at::Tensor& weight, const MatrixChange& change,
                             const at::Tensor& bias, const at::Tensor& added) {
    if (!layer_.qa.defined()) return reading("q", weight, change, bias, added);
    auto down = matrix("q_a", layer_.qa, change_.qa);
    read_norm(down, layer_.input, change_.input, "norm");
    auto up = matrix("q_b", weight, change);
    latent_norm(up, layer_.q_latent, change_.q_latent, "q_a_norm", layer_.q_latent_scale);
    return chained(down, up);
  }

  std::vector<Piece> keys(const at::Tensor& weight, const MatrixChange& change,
                          const at::Tensor& bias, const at::Tensor& added, const char* name) {
    if (!layer_.is_mla()) return reading(name, weight, change, bias, added);
    auto down = matrix("kv_a", layer_.kva, change_.kva);
    read_norm(down, layer_.input, change_.input, "norm");
    auto up = matrix("kv_b", weight, change);
    latent_norm(up, layer_.kv_latent, change_.kv_latent, "kv_a_norm", layer_.kv_latent_scale);
    return chained(down, up);
  }

  std::vector<Piece> reading(const char* name, const at::Tensor& weight, const MatrixChange& change,
                             const at::Tensor& bias, const at::Tensor& added) {
    auto pieces = matrix(name, weight, change);
    if (options_.homogeneous) append_bias(pieces, bias, added, names_.bit(name));
    read_norm(pieces, layer_.input, change_.input, "norm");
    return pieces;
  }

  std::vector<Piece> matrix(const char* name, const at::Tensor& weight,
                            const MatrixChange& change) {
    return matrix_pieces({name, layer_.index, weight, change}, names_);
  }

  void read_norm(std::vector<Piece>& pieces, const Norm& norm, const std::optional<Norm>& changed,
                 const char* name) {
    if (options_.fold_norm) scale_rows(pieces, norm, changed, {name, options_.homogeneous}, names_);
  }

  void latent_norm(std::vector<Piece>& pieces, const Norm& norm, const std::optional<Norm>& changed,
                   const char* name, double scale) {
    scale_rows(pieces, norm, changed, {name, false, scale}, names_);
  }

  Circuit finish(Circuit circuit, std::vector<Piece> left, std::vector<Piece> right) const {
    circuit.switches = names_.names();
    circuit.left = side(std::move(left));
    circuit.right = side(std::move(right));
    if (circuit.left.width != circuit.right.width) {
      fail(ErrorCode::InvalidShape,
           "layer {}: the sides of {} have heads of {} and {}; expected "
           "the same",
           layer_.index, circuit.name(), circuit.left.width, circuit.right.width);
    }
    return circuit;
  }

  static Side side(std::vector<Piece> pieces) {
    Side side;
    for (const Piece& piece : pieces) {
      side.count = std::max(
          {side.count, piece.span.size(0), piece.coords.defined() ? piece.coords.size(0) : 0});
    }
    const Piece& base = pieces.front();
    side.rows = base.span.size(1);
    side.width = (base.coords.defined() ? base.coords : base.span).size(2);
    side.pieces = std::move(pieces);
    return side;
  }

  const AttentionLayer& layer_;
  const LayerChange& change_;
  const CircuitOptions& options_;
  SwitchNames names_;
};

/// X_a Y_b^T of every head by the thinnest of the four widths that its factors offer.
LowRank pair_factors(const Piece& a, const Piece& b, std::int64_t heads, std::int64_t k) {
  const std::int64_t p = a.span.size(2), q = b.span.size(2);
  if (p <= std::min(q, k) && a.coords.defined()) {
    return {for_heads(a.span, heads), heads_product(formed(b), for_heads(a.coords, heads).mT())};
  }
  if (q < k && b.coords.defined()) {
    return {heads_product(formed(a), for_heads(b.coords, heads).mT()), for_heads(b.span, heads)};
  }
  return {for_heads(formed(a), heads), for_heads(formed(b), heads)};
}

}  // namespace

const char* Circuit::name() const {
  switch (kind) {
    case Kind::qk:
      return "QK";
    case Kind::qk_rope:
      return "QK_rope";
    case Kind::vo:
      return "VO";
  }
  return "";
}

std::vector<Circuit> circuits(const AttentionLayer& layer, const LayerChange& change,
                              const CircuitOptions& options) {
  if (options.homogeneous && (layer.is_mla() || layer.qa.defined())) {
    fail(ErrorCode::Unsupported,
         "layer {}: biases as a coordinate of the input end at a latent's norm; expected a layer "
         "without latents",
         layer.index);
  }
  return Builder(layer, change, options).all();
}

std::string term_name(const Circuit& circuit, SwitchSet set) {
  if (set == 0) return "base";
  std::vector<std::string> names;
  bool letters = true;
  for (std::size_t j = 0; j < circuit.switches.size(); ++j) {
    if ((set >> j & 1) == 0) continue;
    names.push_back(circuit.switches[j]);
    letters &= names.back().size() == 1;
  }
  return fmt::format("{}", fmt::join(names, letters ? "" : "+"));
}

std::vector<Term> terms_of(const Circuit& circuit) {
  std::map<std::pair<int, SwitchSet>, Term> terms;
  for (std::size_t a = 0; a < circuit.left.pieces.size(); ++a) {
    for (std::size_t b = 0; b < circuit.right.pieces.size(); ++b) {
      const SwitchSet set = circuit.left.pieces[a].set | circuit.right.pieces[b].set;
      Term& term = terms[{std::popcount(set), set}];
      term.name = term_name(circuit, set);
      term.set = set;
      term.pairs.emplace_back(a, b);
    }
  }
  std::vector<Term> out;
  for (auto& [key, term] : terms) out.push_back(std::move(term));
  return out;
}

Circuit at_offset(const Circuit& circuit, double delta) {
  if (circuit.rotary.layout == Rotary::Layout::none) return circuit;
  Circuit out = circuit;
  out.rotary = Rotary{};
  // Nothing turns at distance 0: the matrices are not copied.
  if (delta == 0 && circuit.rotary.scale == 1) return out;
  for (Piece& piece : out.left.pieces) {
    at::Tensor& last = piece.coords.defined() ? piece.coords : piece.span;
    last = rotate(last, circuit.rotary, delta);
  }
  return out;
}

Circuit of_heads(const Circuit& circuit, std::int64_t begin, std::int64_t count) {
  const auto some = [&](const at::Tensor& x) {
    if (!x.defined() || x.size(0) == 1) return x;
    if (x.size(0) == circuit.heads) return x.narrow(0, begin, count);
    const at::Tensor heads = at::arange(begin, begin + count, at::kLong);
    return x.index_select(0, at::floor_divide(heads, circuit.heads / x.size(0)).to(x.device()));
  };
  Circuit out = circuit;
  out.heads = count;
  for (Side* side : {&out.left, &out.right}) {
    if (side->count > 1) side->count = count;
    for (Piece& piece : side->pieces) piece = {piece.set, some(piece.span), some(piece.coords)};
  }
  return out;
}

at::Tensor formed(const Piece& piece) {
  return piece.coords.defined() ? heads_product(piece.span, piece.coords) : piece.span;
}

at::Tensor formed(const Side& side, bool base_only) {
  at::Tensor out = formed(side.pieces.front());
  if (base_only) return for_heads(out, side.count);
  for (std::size_t p = 1; p < side.pieces.size(); ++p) out = out + formed(side.pieces[p]);
  return for_heads(out, side.count);
}

LowRank term_factors(const Circuit& circuit, const Term& term) {
  std::vector<LowRank> parts;
  for (const auto& [a, b] : term.pairs) {
    parts.push_back(pair_factors(circuit.left.pieces[a], circuit.right.pieces[b], circuit.heads,
                                 circuit.left.width));
  }
  return sum(parts);
}

LowRank circuit_factors(const Circuit& circuit, bool adapted) {
  return {for_heads(formed(circuit.left, !adapted), circuit.heads),
          for_heads(formed(circuit.right, !adapted), circuit.heads)};
}

LowRank delta_factors(const Circuit& circuit) {
  const Piece& first = circuit.left.pieces.front();
  const Piece whole = {0, formed(circuit.right), {}};
  std::vector<LowRank> parts;
  for (const Piece& piece : circuit.left.pieces) {
    if (piece.set != 0) {
      parts.push_back(pair_factors(piece, whole, circuit.heads, circuit.left.width));
    }
  }
  for (const Piece& piece : circuit.right.pieces) {
    if (piece.set != 0) {
      parts.push_back(pair_factors(first, piece, circuit.heads, circuit.left.width));
    }
  }
  if (!parts.empty()) return sum(parts);
  const auto none = [&](const Side& side) {
    return at::zeros({circuit.heads, side.rows, 0}, side.pieces[0].span.options());
  };
  return {none(circuit.left), none(circuit.right)};
}

}  // namespace subspace
