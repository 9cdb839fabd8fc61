// Properties of terms and their factors: P1 - P3, P6, P7, P10, P15, P21.

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>

#include "lora/circuit_metrics.h"
#include "lora/selftest_cases.h"

namespace subspace::selftest {
namespace {

struct DenseCircuits {
  at::Tensor qk, vo;  // [H, d, d]
};

/// From the merged matrices as stored.
DenseCircuits merged_circuits(const Heads& h, bool adapted = true) {
  const auto weight = [&](const Linear& linear) {
    return adapted ? linear.merged() : linear.weight;
  };
  std::vector<at::Tensor> qk, vo;
  for (std::int64_t i = 0; i < h.heads; ++i) {
    const std::int64_t g = i / (h.heads / h.groups);
    const at::Tensor q = weight(h.q).narrow(0, i * h.d_k, h.d_k);
    const at::Tensor k = weight(h.k).narrow(0, g * h.d_k, h.d_k);
    const at::Tensor v = weight(h.v).narrow(0, g * h.d_v, h.d_v);
    const at::Tensor o = weight(h.o).narrow(1, i * h.d_v, h.d_v);
    qk.push_back(at::matmul(q.t(), k));
    vo.push_back(at::matmul(v.t(), o.t()));
  }
  return {at::stack(qk), at::stack(vo)};
}

double sums_are_merged(std::uint64_t seed) {
  double worst = 0;
  for (unsigned adapters = 0; adapters <= kAll; ++adapters) {
    Draw draw(seed * 16 + adapters);
    const Heads h = random_heads(draw, adapters);
    const DenseCircuits expected = merged_circuits(h), base = merged_circuits(h, false);
    for (const Circuit& circuit : circuits(h.layer, h.change)) {
      const bool qk = circuit.kind == Circuit::Kind::qk;
      const at::Tensor& whole = qk ? expected.qk : expected.vo;
      worst = std::max(worst, error_of(sum_of_terms(circuit), whole));
      worst = std::max(worst, error_of(circuit_factors(circuit, true).dense(), whole));
      worst = std::max(worst,
                       error_of(delta_factors(circuit).dense() + (qk ? base.qk : base.vo), whole));
    }
  }
  return worst;
}

at::Tensor softmax_causal(const at::Tensor& logits) {
  const at::Tensor hidden = at::ones_like(logits).triu(1).to(at::kBool);
  return at::softmax(logits.masked_fill(hidden, -1e30), -1);
}

/// The whole layer by its terms, every one gated, and by merged weights.
double gated_forward(std::uint64_t seed) {
  Draw draw(seed);
  const Heads h = random_heads(draw);
  const Rotary rotary = random_rotary(draw, h.d_k);
  const at::Tensor x = draw.normal({7, h.d});
  const auto all = circuits(h.layer, h.change);
  const Circuit qk = circuit_of(all, Circuit::Kind::qk), vo = circuit_of(all, Circuit::Kind::vo);
  at::Tensor by_terms = at::zeros({7, h.d}, at::kDouble), by_merged = by_terms.clone();
  for (std::int64_t i = 0; i < h.heads; ++i) {
    const std::int64_t g = i / (h.heads / h.groups);
    const auto head_of = [&](const Piece& piece) {
      const at::Tensor whole = formed(piece);
      return whole[i / (h.heads / whole.size(0))];
    };
    at::Tensor logits = at::zeros({7, 7}, at::kDouble);
    for (const Term& term : terms_of(qk)) {
      for (const auto& [a, b] : term.pairs) {
        const at::Tensor q = at_positions(at::matmul(x, head_of(qk.left.pieces[a])), rotary);
        const at::Tensor k = at_positions(at::matmul(x, head_of(qk.right.pieces[b])), rotary);
        logits += at::matmul(q, k.t());
      }
    }
    const at::Tensor pattern = softmax_causal(logits * 0.1);
    for (const Term& term : terms_of(vo)) {
      const LowRank factors = term_factors(vo, term);
      by_terms +=
          at::matmul(at::matmul(pattern, at::matmul(x, factors.left[i])), factors.right[i].t());
    }
    const auto rows = [](const at::Tensor& w, std::int64_t at, std::int64_t width) {
      return w.narrow(0, at * width, width).t();
    };
    const at::Tensor q = at_positions(at::matmul(x, rows(h.q.merged(), i, h.d_k)), rotary);
    const at::Tensor k = at_positions(at::matmul(x, rows(h.k.merged(), g, h.d_k)), rotary);
    const at::Tensor v = at::matmul(x, rows(h.v.merged(), g, h.d_v));
    const at::Tensor o = h.o.merged().narrow(1, i * h.d_v, h.d_v).t();
    by_merged += at::matmul(at::matmul(softmax_causal(at::matmul(q, k.t()) * 0.1), v), o);
  }
  return error_of(by_terms, by_merged);
}

/// Violations of the rank bounds, which generic matrices reach.
double rank_bounds(std::uint64_t seed) {
  Draw draw(seed);
  const Heads h = random_heads(draw);
  const auto all = circuits(h.layer, h.change);
  double wrong = 0;
  const auto expect = [&](std::int64_t found, std::int64_t expected) {
    wrong += found != expected;
  };
  const std::int64_t r_q = h.q.a.size(0), r_k = h.k.a.size(0), r_v = h.v.a.size(0),
                     r_o = h.o.a.size(0);
  const Circuit qk = circuit_of(all, Circuit::Kind::qk), vo = circuit_of(all, Circuit::Kind::vo);
  const DenseCircuits after = merged_circuits(h), before = merged_circuits(h, false);
  expect(rank_of(dense_term(qk, "q")[0]), std::min(r_q, h.d_k));
  expect(rank_of(dense_term(qk, "k")[0]), std::min(r_k, h.d_k));
  expect(rank_of(dense_term(qk, "qk")[0]), std::min({r_q, r_k, h.d_k}));
  expect(rank_of((after.qk - before.qk)[0]), std::min(r_q + r_k, 2 * h.d_k));
  expect(rank_of((after.vo - before.vo)[0]), std::min(r_v + r_o, 2 * h.d_v));
  expect(rank_of(after.qk[0]), h.d_k);
  if (r_q < h.d_k && r_k < h.d_k) expect(delta_factors(qk).width(), r_q + r_k);
  if (r_v < h.d_v && r_o < h.d_v) expect(delta_factors(vo).width(), r_v + r_o);
  const at::Tensor q_terms = dense_term(qk, "q"), o_terms = dense_term(vo, "o");
  expect(rank_of(q_terms.transpose(0, 1).reshape({h.d, -1})), std::min(r_q, h.heads * h.d_k));
  expect(rank_of(o_terms.reshape({-1, h.d})), std::min(r_o, h.heads * h.d_v));
  return wrong;
}

double zero_adapter(std::uint64_t seed) {
  Draw draw(seed);
  Heads h = random_heads(draw);
  for (Linear* linear : {&h.q, &h.k, &h.v, &h.o}) linear->b.zero_();
  cut(h);
  double worst = 0;
  for (const Circuit& circuit : circuits(h.layer, h.change)) {
    for (const Term& term : terms_of(circuit)) {
      if (term.set != 0) worst = std::max(worst, largest(term_factors(circuit, term).dense()));
    }
    worst = std::max(worst, largest(circuit_factors(circuit, true).dense() -
                                    circuit_factors(circuit, false).dense()));
    const CircuitMetrics m = circuit_metrics(circuit, {});
    worst = std::max({worst, largest(m.values_adapted - m.values_base),
                      largest(m.fro.select(1, 0) - m.fro.select(1, 1)), largest(m.fro.select(1, 2)),
                      largest(m.eigen.select(1, 0) - m.eigen.select(1, 1))});
  }
  return worst;
}

double quadratic_in_scale(std::uint64_t seed) {
  Draw draw(seed);
  Heads h = random_heads(draw);
  const Circuit one = circuit_of(circuits(h.layer, h.change), Circuit::Kind::qk);
  const double s = 0.25 * static_cast<double>(draw.whole(1, 8));
  const at::Tensor expected = dense_term(one, "base") +
                              (dense_term(one, "q") + dense_term(one, "k")) * s +
                              dense_term(one, "qk") * (s * s);
  h.q.b = h.q.b * s;
  h.k.b = h.k.b * s;
  return error_of(merged_circuits(h).qk, expected);
}

/// What of x lies outside the span of y's columns, relative to x: both [H, d, ..].
double outside(const at::Tensor& x, const at::Tensor& y) {
  const at::Tensor q = std::get<0>(at::linalg_qr(y));
  return error_of(at::matmul(q, at::matmul(q.mT(), x)), x);
}

double spaces_kept(std::uint64_t seed) {
  Draw draw(seed);
  double worst = 0;
  for (const bool reads : {true, false}) {
    const Heads h = random_heads(draw, reads ? kQ | kV : kK | kO);
    const DenseCircuits after = merged_circuits(h);
    const auto all = circuits(h.layer, h.change);
    const Circuit qk = circuit_of(all, Circuit::Kind::qk), vo = circuit_of(all, Circuit::Kind::vo);
    const auto kept = [&](const at::Tensor& whole, const Circuit& circuit) {
      const Side& side = reads ? circuit.right : circuit.left;
      return outside(reads ? whole.mT() : whole, for_heads(formed(side, true), h.heads));
    };
    worst = std::max({worst, kept(after.qk, qk), kept(after.vo, vo)});
    if (terms_of(qk).size() != 2 || terms_of(vo).size() != 2) worst = 1;
  }
  return worst;
}

/// Terms against the inclusion-exclusion sum over merged layers, with every subset of changes on.
double moebius(std::uint64_t seed) {
  Draw draw(seed);
  const Latents m = random_latents(draw);
  const Circuit circuit = circuit_of(circuits(m.layer, m.change), Circuit::Kind::qk);
  const std::vector<std::string>& names = circuit.switches;
  const auto with = [&](SwitchSet set) {
    LayerChange on = m.change;
    for (std::size_t j = 0; j < names.size(); ++j) {
      if ((set >> j & 1) != 0) continue;
      if (names[j] == "q_a") on.qa = {};
      if (names[j] == "q_b") on.q = {};
      if (names[j] == "kv_a") on.kva = {};
      if (names[j] == "kv_b") on.k = {};
    }
    const AttentionLayer& l = m.layer;
    const at::Tensor x =
        at::matmul(merged(l.qa, on.qa), l.q_latent.weight.unsqueeze(1) * merged(l.q, on.q));
    const at::Tensor y =
        at::matmul(merged(l.kva, on.kva), l.kv_latent.weight.unsqueeze(1) * merged(l.k, on.k));
    return at::matmul(x, y.mT());
  };
  if (names.size() != 4) return 1;
  const at::Tensor whole = with(15);
  double worst = 0;
  for (const Term& term : terms_of(circuit)) {
    at::Tensor expected = at::zeros_like(whole);
    for (SwitchSet subset = 0; subset <= term.set; ++subset) {
      if ((subset & ~term.set) != 0) continue;
      const int missing = std::popcount(term.set) - std::popcount(subset);
      expected += with(subset) * (missing % 2 == 0 ? 1.0 : -1.0);
    }
    const double error = largest(term_factors(circuit, term).dense() - expected) / largest(whole);
    worst = std::max(worst, error);
  }
  return worst;
}

/// W' = (W + A B) G, G from norms of columns, against its three pieces a side.
double dora(std::uint64_t seed) {
  Draw draw(seed);
  Heads h = random_heads(draw);
  const auto magnitude = [&](const at::Tensor& weight, MatrixChange& change, bool whole_rows) {
    const at::Tensor w = merged(weight, change);  // [n, in, out]
    // PEFT's norm runs over all inputs of an output: for o these are those of every head.
    at::Tensor norms = w.square().sum(whole_rows ? at::IntArrayRef({0, 1}) : at::IntArrayRef({1}));
    norms = norms.sqrt();
    if (whole_rows) norms = norms.unsqueeze(0);
    change.gain = (draw.normal(norms.sizes()).abs() + 0.5) / norms;
  };
  magnitude(h.layer.q, h.change.q, false);
  magnitude(h.layer.k, h.change.k, false);
  magnitude(h.layer.v, h.change.v, false);
  magnitude(h.layer.o, h.change.o, true);
  double worst = 0;
  for (const Circuit& circuit : circuits(h.layer, h.change)) {
    const bool qk = circuit.kind == Circuit::Kind::qk;
    const at::Tensor x = qk ? merged(h.layer.q, h.change.q) : merged(h.layer.v, h.change.v);
    const at::Tensor y = qk ? merged(h.layer.k, h.change.k).mT() : merged(h.layer.o, h.change.o);
    const at::Tensor whole = at::matmul(for_heads(x, h.heads), for_heads(y, h.heads));
    worst = std::max(worst, error_of(sum_of_terms(circuit), whole));
    if (terms_of(circuit).size() != 9) worst = 1;
  }
  return worst;
}

}  // namespace

std::vector<Property> term_properties() {
  return {
      {"P1", "sum of terms = circuit of merged weights; MHA, GQA, MQA, every subset", 1e-12,
       sums_are_merged},
      {"P2", "forward gated term by term = merged forward", 1e-12, gated_forward},
      {"P3", "rank bounds, columns of dM, rank of stacked terms", 0, rank_bounds},
      {"P6", "B = 0: every term exactly zero, metrics those of the base", 0, zero_adapter},
      {"P7", "M(s) = base + s (q + k) + s^2 qk", 1e-12, quadratic_in_scale},
      {"P10", "q, v alone keep write and key spaces; k, o alone keep read spaces", 1e-12,
       spaces_kept},
      {"P15", "terms = inclusion-exclusion over merged circuits (chain of four)", 1e-12, moebius},
      {"P21", "DoRA: W + W (G - I) + A B G on both sides", 1e-12, dora},
  };
}

}  // namespace subspace::selftest
