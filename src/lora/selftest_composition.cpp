// Properties that composition rests on: P16 - P18.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "lora/circuit_metrics.h"
#include "lora/selftest_cases.h"

namespace subspace::selftest {
namespace {

double norm_of(const LowRank& x) { return inner(x, x).sum().sqrt().item<double>(); }

/// |M1 N2| / (|M1| |N2|) from factors.
double score(const LowRank& writer, const LowRank& reader) {
  return norm_of(product(writer, reader)) / (norm_of(writer) * norm_of(reader));
}

LowRank head_of(const LowRank& x, std::int64_t head) {
  return {x.left.narrow(0, head, 1), x.right.narrow(0, head, 1)};
}

struct Pair {
  Heads writer, reader;
};

/// Two layers of one width.
Pair two_layers(Draw& draw) {
  const std::int64_t d = draw.whole(24, 40);
  const auto layer = [&] {
    const std::int64_t groups = draw.whole(1, 2);
    return heads_of(draw, groups * draw.whole(1, 2), groups, d, 2 * draw.whole(2, 4),
                    draw.whole(3, 6), kAll);
  };
  return {layer(), layer()};
}

/// Scores by factors, by dense products, in Elhage's column convention, and by singular values of
/// both sides as TransformerLens collapses them.
double scores(std::uint64_t seed) {
  Draw draw(seed);
  const Pair pair = two_layers(draw);
  const LowRank vo = head_of(
      circuit_factors(
          circuit_of(circuits(pair.writer.layer, pair.writer.change), Circuit::Kind::vo), true),
      0);
  const auto readers = circuits(pair.reader.layer, pair.reader.change);
  const LowRank qk = head_of(circuit_factors(circuit_of(readers, Circuit::Kind::qk), true), 0);
  const LowRank ov = head_of(circuit_factors(circuit_of(readers, Circuit::Kind::vo), true), 0);
  double worst = 0;
  for (const LowRank& reader : {qk, qk.transposed(), ov}) {
    const at::Tensor m = vo.dense()[0], n = reader.dense()[0];
    const double expected = (at::matmul(m, n).norm() / (m.norm() * n.norm())).item<double>();
    // W_OV = M^T acts on columns: |N^T M^T| has the same norms.
    const double columns = (at::matmul(n.t(), m.t()).norm() / (m.norm() * n.norm())).item<double>();
    const auto [um, sm, vm] = at::linalg_svd(m, false);
    const auto [un, sn, vn] = at::linalg_svd(n, false);
    const at::Tensor collapsed =
        at::matmul(sm.unsqueeze(1) * vm, un * sn).norm() / (sm.norm() * sn.norm());
    const double found = score(vo, reader);
    worst = std::max({worst, std::abs(found - expected), std::abs(found - columns),
                      std::abs(found - collapsed.item<double>())});
  }
  // Interfaces: base + bn + nb + nn, and D = M1 dN2 + dM1 N2 + dM1 dN2.
  const Heads &w = pair.writer, &r = pair.reader;
  const at::Tensor o = w.layer.o[0], a_o = w.change.o.a[0], b_o = w.change.o.b[0];
  const at::Tensor q = r.layer.q[0], a_q = r.change.q.a[0], b_q = r.change.q.b[0];
  const at::Tensor expanded = at::matmul(o, q) + at::matmul(at::matmul(o, a_q), b_q) +
                              at::matmul(a_o, at::matmul(b_o, q)) +
                              at::matmul(a_o, at::matmul(at::matmul(b_o, a_q), b_q));
  worst = std::max(
      worst, error_of(expanded, at::matmul(o + at::matmul(a_o, b_o), q + at::matmul(a_q, b_q))));
  const Circuit write = circuit_of(circuits(w.layer, w.change), Circuit::Kind::vo);
  const Circuit read = circuit_of(readers, Circuit::Kind::qk);
  const LowRank m1 = head_of(circuit_factors(write, false), 0);
  const LowRank n2 = head_of(circuit_factors(read, false), 0);
  const LowRank dm = head_of(delta_factors(write), 0), dn = head_of(delta_factors(read), 0);
  const LowRank difference = sum({product(m1, dn), product(dm, n2), product(dm, dn)});
  const at::Tensor whole = at::matmul(head_of(circuit_factors(write, true), 0).dense(),
                                      head_of(circuit_factors(read, true), 0).dense()) -
                           at::matmul(m1.dense(), n2.dense());
  return std::max(worst, error_of(difference.dense(), whole));
}

at::Tensor haar(Draw& draw, std::int64_t d) {
  const auto [q, r] = at::linalg_qr(draw.normal({d, d}));
  return q * r.diagonal().sign();
}

/// S^2 of randomly turned circuits: mean 1/d, its variance; PK of random spans: mean p q / d and
/// its variance; lift of a random A. In units of what is allowed.
double random_orientation(std::uint64_t seed) {
  Draw draw(seed);
  const std::int64_t d = 12, samples = 4000;
  const at::Tensor m = at::matmul(draw.normal({d, 3}), draw.normal({3, d}));
  const at::Tensor n = at::matmul(draw.normal({d, 4}), draw.normal({4, d}));
  const at::Tensor pw = at::matmul(m.t(), m), pr = at::matmul(n, n.t());
  std::vector<double> squares, kernels, lifts;
  const auto tr = [](const at::Tensor& x) { return x.trace().item<double>(); };
  const double scale = tr(pw) * tr(pr);
  for (std::int64_t i = 0; i < samples; ++i) {
    const at::Tensor turn = haar(draw, d);
    squares.push_back(tr(at::matmul(at::matmul(pw, turn), at::matmul(pr, turn.t()))) / scale);
    kernels.push_back(turn.narrow(0, 0, 3).narrow(1, 0, 4).square().sum().item<double>());
    const at::Tensor a = draw.normal({d, 2}), b = draw.normal({2, 5});
    lifts.push_back(
        (at::matmul(at::matmul(m, a), b).square().sum() / at::matmul(a, b).square().sum())
            .item<double>() *
        static_cast<double>(d) / tr(pw));
  }
  const auto dd = static_cast<double>(d);
  const auto spread = [&](const at::Tensor& p) {
    return p.square().sum().item<double>() - tr(p) * tr(p) / dd;
  };
  const double variance = 2 / ((dd - 1) * (dd + 2)) * spread(pw) * spread(pr) / (scale * scale);
  const double kernel_variance = 2 * 3 * 4 * (dd - 3) * (dd - 4) / (dd * dd * (dd - 1) * (dd + 2));
  const auto mean_error = [&](const std::vector<double>& list, double mean) {
    const at::Tensor x = at::tensor(list, at::kDouble);
    const double error = x.std().item<double>() / std::sqrt(static_cast<double>(samples));
    return std::abs(x.mean().item<double>() - mean) / (5 * error);
  };
  // The fourth moment is not known here; 4000 samples find a variance to a few per cent.
  const auto variance_error = [&](const std::vector<double>& list, double expected) {
    return std::abs(at::tensor(list, at::kDouble).var().item<double>() / expected - 1) / 0.12;
  };
  return std::max({mean_error(squares, 1 / dd), variance_error(squares, variance),
                   mean_error(kernels, 12 / dd), variance_error(kernels, kernel_variance),
                   mean_error(lifts, 1)});
}

/// By how much S exceeds 1 / sqrt(stable rank) of either side.
double stable_rank_bound(std::uint64_t seed) {
  Draw draw(seed);
  const Pair pair = two_layers(draw);
  const LowRank vo = circuit_factors(
      circuit_of(circuits(pair.writer.layer, pair.writer.change), Circuit::Kind::vo), true);
  const LowRank qk = circuit_factors(
      circuit_of(circuits(pair.reader.layer, pair.reader.change), Circuit::Kind::qk), true);
  const LowRank writer = head_of(vo, 0), reader = head_of(qk, 0);
  const auto bound = [](const LowRank& x) {
    return (singular_values(x).max() / singular_values(x).norm()).item<double>();
  };
  return std::max(0.0, score(writer, reader) - std::min(bound(writer), bound(reader)));
}

}  // namespace

std::vector<Property> composition_properties() {
  return {
      {"P16", "composition: factors = dense = Elhage = collapsed; interfaces; D", 1e-12, scores},
      {"P17", "random orientation: S^2, projection kernel, lift (share of 5 s.e., of 12 %)", 1,
       random_orientation},
      {"P18", "S <= 1 / sqrt(stable rank)", 1e-12, stable_rank_bound},
  };
}

}  // namespace subspace::selftest
