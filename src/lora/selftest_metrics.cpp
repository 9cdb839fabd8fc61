// Properties of metrics: P4, P5, P8, P9, P19, P20.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "lora/circuit_metrics.h"
#include "lora/selftest_cases.h"
#include "lora/shared_basis.h"

namespace subspace::selftest {
namespace {

/// A metric that both circuits have, compared; those of nothing are NaN in both.
double difference(const at::Tensor& found, const at::Tensor& expected) {
  if (!found.defined() && !expected.defined()) return 0;
  return error_of(found.nan_to_num(0.125), expected.nan_to_num(0.125));
}

/// All but angles, which belong to how an adapter is written only through its span.
double metrics_differ(const CircuitMetrics& a, const CircuitMetrics& b) {
  double worst = 0;
  for (const at::Tensor CircuitMetrics::*member :
       {&CircuitMetrics::gram, &CircuitMetrics::fro, &CircuitMetrics::split, &CircuitMetrics::align,
        &CircuitMetrics::values_base, &CircuitMetrics::values_adapted,
        &CircuitMetrics::values_delta, &CircuitMetrics::amplification,
        &CircuitMetrics::intruder_sub, &CircuitMetrics::eigen, &CircuitMetrics::curve}) {
    worst = std::max(worst, difference(a.*member, b.*member));
  }
  for (std::size_t j = 0; j < std::max(a.angles.size(), b.angles.size()); ++j) {
    if (j >= a.angles.size() || j >= b.angles.size()) return 1;
    worst = std::max(worst, difference(a.angles[j].kernel, b.angles[j].kernel));
  }
  return worst;
}

MetricOptions usual_options() {
  MetricOptions options;
  options.window = {0, 1, 3, 8};
  options.curve = {0, 2};
  return options;
}

/// A matrix that commutes with every rotation of whole heads: a turn and a stretch in each plane,
/// anything among unrotated coordinates.
at::Tensor commuting(Draw& draw, const Rotary& rotary, std::int64_t k) {
  at::Tensor n = at::eye(k, at::kDouble);
  const std::int64_t planes = rotary.dims / 2;
  for (std::int64_t f = 0; f < planes; ++f) {
    const bool half = rotary.layout == Rotary::Layout::half;
    const std::int64_t first = rotary.begin + (half ? f : 2 * f);
    const std::int64_t second = rotary.begin + (half ? planes + f : 2 * f + 1);
    const at::Tensor pair = draw.normal({2});
    n[first][first] = n[second][second] = pair[0];
    n[first][second] = pair[1];
    n[second][first] = -pair[1];
  }
  return n;
}

/// X -> X N for every head's columns of a stored matrix and of B.
void on_the_right(MatrixChange& change, at::Tensor& weight, const at::Tensor& n) {
  weight = at::matmul(weight, n);
  change.b = at::matmul(change.b, n);
}

/// O -> N O.
void on_the_left(MatrixChange& change, at::Tensor& weight, const at::Tensor& n) {
  weight = at::matmul(n, weight);
  change.a = at::matmul(n, change.a);
}

void change_factors(Draw& draw, MatrixChange& change) {
  const at::Tensor n = draw.invertible(change.rank());
  change.a = at::matmul(change.a, n);
  change.b = at::matmul(at::linalg_inv(n), change.b);
}

double gauge_invariance(std::uint64_t seed) {
  Draw draw(seed);
  double worst = 0;
  for (const bool rotates : {false, true}) {
    Heads h = random_heads(draw);
    if (rotates) h.layer.rotary = random_rotary(draw, h.d_k);
    Heads other = h;
    const at::Tensor n = rotates ? commuting(draw, h.layer.rotary, h.d_k) : draw.invertible(h.d_k);
    on_the_right(other.change.q, other.layer.q, n);
    on_the_right(other.change.k, other.layer.k, at::linalg_inv(n).t());
    const at::Tensor m = draw.invertible(h.d_v);
    on_the_right(other.change.v, other.layer.v, m);
    on_the_left(other.change.o, other.layer.o, at::linalg_inv(m));
    for (MatrixChange* change :
         {&other.change.q, &other.change.k, &other.change.v, &other.change.o}) {
      change_factors(draw, *change);
    }
    const auto one = circuits(h.layer, h.change), two = circuits(other.layer, other.change);
    for (std::size_t c = 0; c < one.size(); ++c) {
      worst = std::max(worst, metrics_differ(circuit_metrics(two[c], usual_options()),
                                             circuit_metrics(one[c], usual_options())));
    }
  }
  return worst;
}

/// What must change under a gauge does, by more than a thousandth: 0, or by how much it falls
/// short.
double gauge_dependence(std::uint64_t seed) {
  Draw draw(seed);
  Heads h = random_heads(draw);
  const at::Tensor n = draw.invertible(h.d_k), r = draw.invertible(h.change.q.rank()) * 2;
  const auto moved = [](const at::Tensor& a, const at::Tensor& b) { return largest(a / b - 1); };
  const at::Tensor delta = at::matmul(h.change.q.a, h.change.q.b);
  const at::Tensor raw = delta.norm(2, {1, 2}) / h.layer.q.norm(2, {1, 2});
  const at::Tensor turned =
      at::matmul(delta, n).norm(2, {1, 2}) / at::matmul(h.layer.q, n).norm(2, {1, 2});
  double least = moved(turned, raw);
  least = std::min(least, moved(at::matmul(h.change.q.a, r).norm(), h.change.q.a.norm()));
  h.layer.rotary = random_rotary(draw, h.d_k);
  const auto circuit = [&] {
    return at_offset(circuit_of(circuits(h.layer, h.change), Circuit::Kind::qk), 1);
  };
  const at::Tensor before = circuit_factors(circuit(), false).dense();
  on_the_right(h.change.q, h.layer.q, n);
  on_the_right(h.change.k, h.layer.k, at::linalg_inv(n).t());
  least = std::min(least, error_of(circuit_factors(circuit(), false).dense(), before));
  return std::max(0.0, 1e-3 - least);
}

/// Every number of the metrics from matrices multiplied out.
struct Dense {
  at::Tensor base, adapted, delta;
  std::vector<at::Tensor> terms;
};

Dense dense(const Circuit& given, double offset) {
  const Circuit circuit = at_offset(given, offset);
  Dense out;
  out.base = circuit_factors(circuit, false).dense();
  out.adapted = circuit_factors(circuit, true).dense();
  out.delta = at::zeros_like(out.base);
  for (const Term& term : terms_of(circuit)) {
    out.terms.push_back(term_factors(circuit, term).dense());
    if (term.set != 0) out.delta = out.delta + out.terms.back();
  }
  return out;
}

at::Tensor norms(const at::Tensor& x) { return x.square().sum({1, 2}); }

double cores_against_dense(std::uint64_t seed) {
  Draw draw(seed);
  Heads h = random_heads(draw);
  if (draw.whole(0, 1) == 1) h.layer.rotary = random_rotary(draw, h.d_k);
  const MetricOptions options = usual_options();
  double worst = 0;
  for (const Circuit& circuit : circuits(h.layer, h.change)) {
    const CircuitMetrics m = circuit_metrics(circuit, options);
    const std::vector<std::int64_t> window =
        m.rotary ? options.window : std::vector<std::int64_t>{0};
    at::Tensor gram = at::zeros_like(m.gram), fro = at::zeros_like(m.fro);
    for (const std::int64_t delta : window) {
      const Dense all = dense(circuit, static_cast<double>(delta));
      const at::Tensor terms = at::stack(all.terms, 1).flatten(2);
      gram += at::bmm(terms, terms.mT());
      fro += at::stack({norms(all.base), norms(all.adapted), norms(all.delta)}, 1);
    }
    const auto count = static_cast<double>(window.size());
    worst = std::max(worst, error_of(m.gram, gram / count));
    worst = std::max(worst, error_of(m.fro, (fro / count).sqrt()));
    const Dense still = dense(circuit, 0);
    const auto values = [](const at::Tensor& x, const at::Tensor& like) {
      const at::Tensor all = at::linalg_svdvals(x);
      return all.narrow(1, 0, std::min(all.size(1), like.size(1)));
    };
    worst = std::max(worst, error_of(m.values_base, values(still.base, m.values_base)));
    worst = std::max(worst, error_of(m.values_adapted, values(still.adapted, m.values_adapted)));
    worst = std::max(worst, error_of(m.values_delta, values(still.delta, m.values_delta)));
    const auto eigen = [](const at::Tensor& x) {
      return x.diagonal(0, 1, 2).sum(1) / at::linalg_eigvals(x).abs().sum(1);
    };
    worst =
        std::max(worst, error_of(m.eigen, at::stack({eigen(still.base), eigen(still.adapted)}, 1)));
    if (!m.rotary) continue;
    for (std::size_t j = 0; j < options.curve.size(); ++j) {
      const Dense there = dense(circuit, static_cast<double>(options.curve[j]));
      worst = std::max(worst, error_of(m.curve.select(1, static_cast<std::int64_t>(j)),
                                       at::stack({norms(there.base), norms(there.delta)}, 1)));
    }
  }
  return worst;
}

at::Tensor projector(const at::Tensor& x) {
  const at::Tensor q = std::get<0>(at::linalg_qr(x));
  return at::matmul(q, q.mT());
}

double shares_and_split(std::uint64_t seed) {
  double worst = 0;
  for (unsigned adapters = 1; adapters <= kAll; ++adapters) {
    Draw draw(seed * 16 + adapters);
    const Heads h = random_heads(draw, adapters);
    for (const Circuit& circuit : circuits(h.layer, h.change)) {
      const CircuitMetrics m = circuit_metrics(circuit, {});
      const std::int64_t changed = m.gram.size(1) - 1;
      if (changed == 0) continue;
      const Dense all = dense(circuit, 0);
      const at::Tensor whole = norms(all.delta);
      const at::Tensor shares = m.gram.narrow(1, 1, changed).narrow(2, 1, changed).sum(2) /
                                m.fro.select(1, 2).square().unsqueeze(1);
      worst = std::max(worst, error_of(shares.sum(1), at::ones_like(whole)));
      worst = std::max(worst, error_of(m.split.sum(1), whole));
      const at::Tensor p = projector(for_heads(formed(circuit.left, true), h.heads));
      const at::Tensor q = projector(for_heads(formed(circuit.right, true), h.heads));
      const auto cut = [&](const at::Tensor& x) {
        const at::Tensor left = at::bmm(p, x), right = at::bmm(x, q);
        const at::Tensor both = at::bmm(left, q);
        return at::stack(
            {norms(both), norms(right - both), norms(left - both), norms(x - left - right + both)},
            1);
      };
      const at::Tensor split = cut(all.delta);
      worst = std::max(worst, largest((m.split - split) / whole.unsqueeze(1)));
      // What is new on both sides comes from the cross term alone, and is nothing without it.
      const at::Tensor cross =
          m.terms.size() == 4 ? cut(all.terms[3]).select(1, 3) : at::zeros_like(whole);
      worst = std::max(worst, largest((m.split.select(1, 3) - cross) / whole));
    }
  }
  return worst;
}

/// Counts of the two kinds of intruders on the left of one head.
std::pair<double, double> intruders_of(const at::Tensor& v, const at::Tensor& o,
                                       const LayerChange& change) {
  AttentionLayer layer;
  layer.v = v.unsqueeze(0);
  layer.o = o.unsqueeze(0);
  layer.q = at::zeros({1, v.size(0), 0}, v.options());
  const CircuitMetrics m =
      circuit_metrics(circuit_of(circuits(layer, change), Circuit::Kind::vo), {});
  return {m.intruder_vec[0][0].item<double>(), m.intruder_sub[0][0].item<double>()};
}

/// A flat base spectrum makes single vectors meaningless, and spans not.
double intruders(std::uint64_t seed) {
  Draw draw(seed);
  const std::int64_t d = 64, k = 32;
  const at::Tensor v = draw.orthonormal(d, k), o = draw.orthonormal(d, k).t();
  LayerChange inside;
  inside.v.a = v.unsqueeze(0);
  inside.v.b = draw.normal({1, k, k}) * 0.003;
  const auto [flat_vec, flat_sub] = intruders_of(v, o, inside);
  LayerChange planted;
  const at::Tensor fresh = draw.normal({d, 1});
  const at::Tensor beyond = fresh - at::matmul(v, at::matmul(v.t(), fresh));
  planted.v.a = (beyond / beyond.norm()).unsqueeze(0);
  planted.v.b = draw.orthonormal(k, 1).t().unsqueeze(0) * 10;
  const auto [new_vec, new_sub] = intruders_of(v, o, planted);
  return (flat_vec < 5) + (flat_sub != 0) + (new_vec < 1) + (new_sub != 1);
}

/// The basis of what heads share: of the stacked terms, whoever writes A and B.
double shared_features(std::uint64_t seed) {
  Draw draw(seed);
  const Heads h = random_heads(draw);
  Heads other = h;
  for (MatrixChange* change :
       {&other.change.q, &other.change.k, &other.change.v, &other.change.o}) {
    change_factors(draw, *change);
  }
  const auto one = circuits(h.layer, h.change), two = circuits(other.layer, other.change);
  double worst = 0;
  for (std::size_t c = 0; c < one.size(); ++c) {
    const auto first = shared_bases(one[c], frames_of(one[c]));
    const auto second = shared_bases(two[c], frames_of(two[c]));
    if (first.size() != 2 || second.size() != 2) return 1;
    for (std::size_t j = 0; j < first.size(); ++j) {
      const at::Tensor term = dense_term(one[c], first[j].change);
      const at::Tensor stacked =
          first[j].read ? term.transpose(0, 1).reshape({h.d, -1}) : term.reshape({-1, h.d}).t();
      const std::int64_t rank = first[j].values.size(0);
      worst = std::max(worst,
                       error_of(first[j].values, at::linalg_svdvals(stacked).narrow(0, 0, rank)));
      worst = std::max(worst, error_of(second[j].values, first[j].values));
      worst = std::max(worst, error_of(first[j].load.square().sum(1), first[j].values.square()));
      // Directions and loads are those of separate singular values only.
      const at::Tensor u = first[j].directions, w = second[j].directions;
      worst = std::max(worst, error_of(at::matmul(u, at::matmul(u.t(), stacked)), stacked));
      worst = std::max(worst, error_of(at::matmul(w, at::matmul(w.t(), stacked)), stacked));
      const at::Tensor loads =
          (first[j].read ? at::matmul(u.t(), term) : at::matmul(term, u).mT()).norm(2, 2).t();
      worst = std::max(worst, error_of(first[j].load, loads));
    }
  }
  return worst;
}

}  // namespace

std::vector<Property> metric_properties() {
  return {
      {"P4", "metrics do not depend on the gauge of heads or of A and B", 1e-11, gauge_invariance},
      {"P5", "sizes of dW and A do; general N breaks M(delta)", 0, gauge_dependence},
      {"P8", "cores = matrices multiplied out: products, spectra, eigenvalues", 1e-12,
       cores_against_dense},
      {"P9", "shares and split sum to 1; structural zeros; new_new from the cross term", 1e-12,
       shares_and_split},
      {"P19", "intruders: flat spectrum by vectors, none by spans; a planted one by both", 0,
       intruders},
      {"P20", "shared features: of the stacked terms, whoever writes A and B", 1e-10,
       shared_features},
  };
}

}  // namespace subspace::selftest
