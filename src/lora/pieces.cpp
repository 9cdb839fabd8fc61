#include "lora/pieces.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>

#include "base/error.h"

namespace subspace {
namespace {

constexpr std::size_t kMostSwitches = 32;

at::Tensor batched(const at::Tensor& x) { return x.dim() == 2 ? x.unsqueeze(0) : x; }

std::string shape_of(const at::Tensor& x) {
  std::string text = "[";
  for (std::int64_t axis = 0; axis < x.dim(); ++axis) {
    text += (axis > 0 ? ", " : "") + std::to_string(x.size(axis));
  }
  return text + "]";
}

/// Says where a change does not fit.
class Check {
 public:
  explicit Check(const ChangedMatrix& matrix) : matrix_(matrix), weight_(batched(matrix.weight)) {}

  void all(const MatrixChange& change) const {
    if (change.a.defined() != change.b.defined()) {
      fail(ErrorCode::InvalidShape, "layer {}: the change of {} has {} alone; expected A and B",
           matrix_.layer, matrix_.name, change.a.defined() ? "A" : "B");
    }
    if (change.a.defined()) {
      const std::int64_t rank = change.a.dim() == 3 ? change.a.size(2) : 0;
      fits("A", change.a, {weight_.size(1), rank});
      fits("B", change.b, {rank, weight_.size(2)});
    }
    if (change.gain.defined()) fits("the magnitude", change.gain, {weight_.size(2)});
    if (change.full.defined())
      fits("the saved matrix", batched(change.full), {weight_.size(1), weight_.size(2)});
  }

 private:
  void fits(const char* part, const at::Tensor& x, std::vector<std::int64_t> shape) const {
    const bool counted = x.dim() == static_cast<std::int64_t>(shape.size()) + 1 &&
                         (x.size(0) == 1 || x.size(0) == weight_.size(0));
    if (!counted || x.sizes().slice(1) != at::IntArrayRef(shape)) {
      shape.insert(shape.begin(), weight_.size(0));
      fail(ErrorCode::InvalidShape,
           "layer {}: {} of the change of {} has shape {}; expected {} (or 1 in front): is the "
           "adapter made for this model?",
           matrix_.layer, part, matrix_.name, shape_of(x), shape_of(at::empty(shape)));
    }
    if (!at::isfinite(x).all().item<bool>()) {
      fail(ErrorCode::NotFinite, "layer {}: {} of the change of {} holds NaN or Inf", matrix_.layer,
           part, matrix_.name);
    }
  }

  const ChangedMatrix& matrix_;
  at::Tensor weight_;
};

/// Applies a map to spans, to each tensor once, so that pieces which share one still do.
template <typename Map>
class Once {
 public:
  explicit Once(Map map) : map_(std::move(map)) {}
  at::Tensor operator()(const at::Tensor& x) {
    auto& [key, value] = done_[x.unsafeGetTensorImpl()];
    if (!value.defined()) {
      key = x;  // kept, so that no other tensor gets its address
      value = map_(x);
    }
    return value;
  }

 private:
  Map map_;
  std::map<const void*, std::pair<at::Tensor, at::Tensor>> done_;
};

template <typename Map>
std::vector<Piece> with_spans(const std::vector<Piece>& pieces, SwitchSet set, Map map) {
  Once once(std::move(map));
  std::vector<Piece> out;
  for (const Piece& piece : pieces) {
    out.push_back({piece.set | set, once(piece.span), piece.coords});
  }
  return out;
}

/// diag(gamma) X, centred for LayerNorm, with `beta` X added to the last row where that is a bias.
at::Tensor through_norm(const at::Tensor& x, const Norm& norm, const at::Tensor& gamma,
                        const at::Tensor& beta, bool homogeneous, bool keep_bias) {
  const std::int64_t rows = gamma.size(0);
  const at::Tensor body = x.narrow(1, 0, rows);
  at::Tensor top = gamma.unsqueeze(1) * body;
  if (norm.kind == Norm::Kind::layer) top = top - top.mean(1, /*keepdim=*/true);
  if (!homogeneous) return top;
  at::Tensor last = x.narrow(1, rows, 1);
  if (!keep_bias) last = at::zeros_like(last);
  if (beta.defined()) last = last + at::matmul(beta.unsqueeze(0), body);
  return at::cat({top, last}, 1);
}

void require_same_kind(const Norm& before, const Norm& after, const char* name) {
  if (before.kind == after.kind && before.weight.sizes() == after.weight.sizes()) return;
  fail(ErrorCode::Unsupported,
       "the adapter's {} has {} numbers or another kind than the base's, which has {}", name,
       after.weight.defined() ? after.weight.numel() : 0,
       before.weight.defined() ? before.weight.numel() : 0);
}

at::Tensor difference(const at::Tensor& after, const at::Tensor& before) {
  if (!after.defined()) return before.defined() ? -before : before;
  return before.defined() ? after - before : after;
}

void append(std::vector<Piece>& pieces, std::vector<Piece> more) {
  pieces.insert(pieces.end(), more.begin(), more.end());
}

}  // namespace

SwitchSet SwitchNames::bit(const std::string& name) {
  const auto found = std::find(names_.begin(), names_.end(), name);
  const auto place = static_cast<std::size_t>(found - names_.begin());
  if (place >= kMostSwitches) {
    fail(ErrorCode::Unsupported, "more than {} changes of one circuit", kMostSwitches);
  }
  if (found == names_.end()) names_.push_back(name);
  return SwitchSet{1} << place;
}

std::vector<Piece> matrix_pieces(const ChangedMatrix& matrix, SwitchNames& names) {
  const MatrixChange& change = matrix.change;
  Check(matrix).all(change);
  const std::string name = matrix.name;
  const at::Tensor weight = batched(matrix.weight);
  std::vector<Piece> out = {{0, weight, {}}};
  const bool dora = change.gain.defined();
  if (dora) {
    out.push_back({names.bit(name + ".mag"), weight, at::diag_embed(change.gain - 1)});
  }
  if (change.a.defined()) {
    out.push_back({names.bit(dora ? name + ".dir" : name), change.a,
                   dora ? change.b * change.gain.unsqueeze(1) : change.b});
  }
  if (change.full.defined()) {
    out.push_back({names.bit(name + ".full"), batched(change.full), {}});
  }
  return out;
}

std::vector<Piece> transposed_pieces(const ChangedMatrix& matrix, SwitchNames& names) {
  const MatrixChange& change = matrix.change;
  Check(matrix).all(change);
  const std::string name = matrix.name;
  const at::Tensor weight = batched(matrix.weight).transpose(1, 2);
  std::vector<Piece> out = {{0, weight, {}}};
  const bool dora = change.gain.defined();
  if (dora) {
    out.push_back({names.bit(name + ".mag"), weight * (change.gain - 1).unsqueeze(2), {}});
  }
  if (change.a.defined()) {
    const at::Tensor b = dora ? change.b * change.gain.unsqueeze(1) : change.b;
    out.push_back(
        {names.bit(dora ? name + ".dir" : name), b.transpose(1, 2), change.a.transpose(1, 2)});
  }
  if (change.full.defined()) {
    out.push_back({names.bit(name + ".full"), batched(change.full).transpose(1, 2), {}});
  }
  return out;
}

std::vector<Piece> chained(const std::vector<Piece>& first, const std::vector<Piece>& second) {
  std::vector<Piece> out;
  for (const Piece& a : first) {
    for (const Piece& b : second) {
      Piece piece;
      piece.set = a.set | b.set;
      const bool thinner = b.coords.defined() && b.span.size(2) < a.span.size(2);
      if (!a.coords.defined() && thinner) {
        piece.span = heads_product(a.span, b.span);
        piece.coords = b.coords;
      } else {
        piece.span = a.span;
        piece.coords = a.coords.defined() ? heads_product(a.coords, b.span) : b.span;
        if (b.coords.defined()) piece.coords = heads_product(piece.coords, b.coords);
      }
      out.push_back(std::move(piece));
    }
  }
  return out;
}

void scale_rows(std::vector<Piece>& pieces, const Norm& norm, const std::optional<Norm>& changed,
                const RowScaling& scaling, SwitchNames& names) {
  if (norm.kind == Norm::Kind::none) {
    if (scaling.scale == 1) return;
    pieces = with_spans(pieces, 0, [&](const at::Tensor& x) { return x * scaling.scale; });
    return;
  }
  const std::vector<Piece> before = pieces;
  pieces = with_spans(before, 0, [&](const at::Tensor& x) {
    return through_norm(x, norm, norm.weight * scaling.scale, norm.bias, scaling.homogeneous, true);
  });
  if (!changed) return;
  require_same_kind(norm, *changed, scaling.name);
  const at::Tensor gamma = (changed->weight - norm.weight) * scaling.scale;
  const at::Tensor beta = difference(changed->bias, norm.bias);
  append(pieces, with_spans(before, names.bit(scaling.name), [&](const at::Tensor& x) {
           return through_norm(x, norm, gamma, beta, scaling.homogeneous, false);
         }));
}

void scale_columns(std::vector<Piece>& pieces, const Norm& norm, const std::optional<Norm>& changed,
                   const char* name, SwitchNames& names) {
  if (norm.kind == Norm::Kind::none || !norm.weight.defined()) return;
  const auto scaled = [&](const at::Tensor& gamma, SwitchSet set) {
    std::vector<Piece> out;
    for (Piece piece : pieces) {
      at::Tensor& last = piece.coords.defined() ? piece.coords : piece.span;
      last = last * gamma;
      piece.set |= set;
      out.push_back(std::move(piece));
    }
    return out;
  };
  std::vector<Piece> all = scaled(norm.weight, 0);
  if (changed) {
    require_same_kind(norm, *changed, name);
    append(all, scaled(changed->weight - norm.weight, names.bit(name)));
  }
  pieces = std::move(all);
}

void scale_written(std::vector<Piece>& pieces, const Norm& norm, const std::optional<Norm>& changed,
                   const char* name, SwitchNames& names) {
  if (norm.kind == Norm::Kind::none) return;
  const auto scaled = [&](const at::Tensor& gamma, SwitchSet set) {
    return with_spans(pieces, set, [&](const at::Tensor& x) {
      const bool centred = norm.kind == Norm::Kind::layer;
      return gamma.unsqueeze(1) * (centred ? x - x.mean(1, /*keepdim=*/true) : x);
    });
  };
  std::vector<Piece> all = scaled(norm.weight, 0);
  if (changed) {
    require_same_kind(norm, *changed, name);
    append(all, scaled(changed->weight - norm.weight, names.bit(name)));
  }
  pieces = std::move(all);
}

void append_bias(std::vector<Piece>& pieces, const at::Tensor& bias, const at::Tensor& added,
                 SwitchSet set) {
  const at::Tensor weight = pieces.front().span;
  const auto with_row = [](const at::Tensor& x, const at::Tensor& row) {
    return at::cat({x, row.defined() ? row.unsqueeze(1) : at::zeros_like(x.narrow(1, 0, 1))}, 1);
  };
  // DoRA's pieces of the weight leave the bias alone, so the base gets a span of its own.
  std::vector<Piece> out =
      with_spans(pieces, 0, [&](const at::Tensor& x) { return with_row(x, {}); });
  out.front().span = with_row(weight, bias);
  pieces = std::move(out);
  if (!added.defined()) return;
  at::Tensor unit = at::zeros({1, weight.size(1) + 1, 1}, weight.options());
  unit[0][weight.size(1)][0] = 1;
  pieces.push_back({set, unit, added.unsqueeze(1)});
}

}  // namespace subspace
