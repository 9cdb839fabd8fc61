// Properties of what models add: rotation (P11), biases and norms (P12), fused projections (P13),
// latents (P14).

#include <ATen/ATen.h>

#include <algorithm>

#include "attention/fused.h"
#include "lora/offsets.h"
#include "lora/selftest_cases.h"

namespace subspace::selftest {
namespace {

at::Tensor gram(const at::Tensor& x, const at::Tensor& y) { return at::matmul(x.mT(), y); }

/// Logits of all positions from terms at each offset, against queries and keys turned one by one.
double rotary_logits(Draw& draw) {
  Heads h = random_heads(draw);
  h.layer.rotary = random_rotary(draw, h.d_k);
  const std::int64_t n = 5;
  const at::Tensor x = draw.normal({n, h.d});
  const Circuit qk = circuit_of(circuits(h.layer, h.change), Circuit::Kind::qk);
  std::vector<at::Tensor> at_delta;
  for (std::int64_t delta = 0; delta < n; ++delta) {
    at_delta.push_back(sum_of_terms(at_offset(qk, static_cast<double>(delta))));
  }
  double worst = 0;
  for (std::int64_t i = 0; i < h.heads; ++i) {
    const std::int64_t g = i / (h.heads / h.groups);
    const auto turned = [&](const Linear& linear, std::int64_t head) {
      return at_positions(at::matmul(x, linear.merged().narrow(0, head * h.d_k, h.d_k).t()),
                          h.layer.rotary);
    };
    const at::Tensor expected = at::matmul(turned(h.q, i), turned(h.k, g).t()).tril();
    at::Tensor found = at::zeros_like(expected);
    for (std::int64_t m = 0; m < n; ++m) {
      for (std::int64_t j = 0; j <= m; ++j) {
        found[m][j] =
            at::matmul(at::matmul(x[m], at_delta[static_cast<std::size_t>(m - j)][i]), x[j]);
      }
    }
    worst = std::max(worst, error_of(found, expected));
  }
  return worst;
}

/// Of two Gram matrices [1, k, k]: their turned inner product's mean over a list of offsets, at
/// each of them, and by planes.
struct TurnedInner {
  at::Tensor mean, each, planes;
};

TurnedInner turned_inner(const Rotary& rotary, const std::vector<std::int64_t>& list,
                         const at::Tensor& left, const at::Tensor& right) {
  const std::int64_t k = left.size(2);
  const Offsets offsets(rotary, k, list, list);
  const auto rows = [&](const at::Tensor& gram, at::Tensor& kept) {
    kept = offsets.ordered(offsets.ordered(gram[0]).t()).t().contiguous();
    return kernels::GramRows{.c = kept.const_data_ptr<double>(), .c_row = k};
  };
  at::Tensor x, y;
  const kernels::GramRows l = rows(left, x), r = rows(right, y);
  const kernels::TurnTables tables = offsets.tables();
  const double once[] = {1};
  const TurnedInner out{at::zeros({}, at::kDouble), at::zeros({tables.offsets, 2}, at::kDouble),
                        at::zeros({tables.planes + 1}, at::kDouble)};
  std::vector<double> scratch;
  kernels::turned_grams({.left = &l,
                         .lefts = 1,
                         .right = &r,
                         .rights = 1,
                         .tables = tables,
                         .mean = out.mean.data_ptr<double>(),
                         .left_mix = once,
                         .right_mix = once,
                         .mixes = 1,
                         .each = out.each.data_ptr<double>(),
                         .planes = out.planes.data_ptr<double>()},
                        scratch);
  return {out.mean, out.each.select(1, 0), out.planes};
}

/// Means over offsets, curves and shares of frequencies against matrices formed at each offset.
double rotary_energies(Draw& draw) {
  const std::int64_t k = 2 * draw.whole(2, 5), d = 20;
  const Rotary rotary = random_rotary(draw, k);
  const at::Tensor x = draw.normal({1, d, k}), y = draw.normal({1, d, k});
  const at::Tensor z = draw.normal({1, d, k}), w = draw.normal({1, d, k});
  const std::vector<std::int64_t> list = {0, 1, 2, 5, 11};
  std::vector<double> each;
  for (const std::int64_t delta : list) {
    const auto at = static_cast<double>(delta);
    const at::Tensor one = at::matmul(rotate(x, rotary, at), y.mT());
    const at::Tensor two = at::matmul(rotate(z, rotary, at), w.mT());
    each.push_back((one * two).sum().item<double>());
  }
  const at::Tensor expected = at::tensor(each, at::kDouble);
  const TurnedInner crossed = turned_inner(rotary, list, gram(x, z), gram(y, w));
  // Inner products of random matrices nearly cancel; the scale is that of their sizes.
  const double scale = (x.norm() * y.norm() * z.norm() * w.norm()).item<double>();
  const auto error = [&](const at::Tensor& a, const at::Tensor& b) {
    return largest(a - b) / scale;
  };
  double worst = error(crossed.each, expected);
  worst = std::max(worst, error(crossed.mean, expected.mean()));

  const at::Tensor own = turned_inner(rotary, list, gram(x, x), gram(y, y)).planes;
  const double turns = rotary.scale * rotary.scale * rotary.scale * rotary.scale;
  for (std::int64_t f = 0; f < rotary.dims / 2; ++f) {
    const bool half = rotary.layout == Rotary::Layout::half;
    const std::int64_t first = rotary.begin + (half ? f : 2 * f);
    const std::int64_t second = rotary.begin + (half ? rotary.dims / 2 + f : 2 * f + 1);
    const auto size = [&](const at::Tensor& m) {
      return m.select(2, first).square().sum() + m.select(2, second).square().sum();
    };
    worst = std::max(worst, error(own[f], size(x) * size(y) * (turns / 2)));
  }
  return worst;
}

double rotation(std::uint64_t seed) {
  Draw draw(seed);
  double worst = std::max(rotary_logits(draw), rotary_energies(draw));
  // Spans of the q- and k-terms are the same at every offset.
  Heads h = random_heads(draw);
  h.layer.rotary = random_rotary(draw, h.d_k);
  const Circuit qk = circuit_of(circuits(h.layer, h.change), Circuit::Kind::qk);
  const at::Tensor a = std::get<0>(at::linalg_qr(h.change.q.a[0]));
  for (const double delta : {1.0, 6.0}) {
    const at::Tensor term = dense_term(at_offset(qk, delta), "q");
    worst = std::max(worst, error_of(at::matmul(a, at::matmul(a.t(), term)), term));
  }
  return worst;
}

at::Tensor normed(const at::Tensor& x, const Norm& norm) {
  at::Tensor y = x;
  if (norm.kind == Norm::Kind::layer) y = y - y.mean(-1, true);
  y = y / y.square().mean(-1, true).sqrt() * norm.weight;
  return norm.bias.defined() ? y + norm.bias : y;
}

/// What a norm leaves of x before its weight, with the constant coordinate behind it.
at::Tensor homogeneous(const at::Tensor& x, Norm::Kind kind) {
  const at::Tensor centred = kind == Norm::Kind::layer ? x - x.mean(-1, true) : x;
  const at::Tensor scaled = x / centred.square().mean(-1, true).sqrt();
  return at::cat({scaled, at::ones_like(scaled.narrow(1, 0, 1))}, 1);
}

/// What a norm makes of x, but for its scale and bias.
at::Tensor passed_on(const at::Tensor& x, const Norm& norm) {
  return norm.weight * (norm.kind == Norm::Kind::layer ? x - x.mean(1, true) : x);
}

/// Biases of the base and of the adapter, norms folded (and trained), against plain projections.
double biases_and_norms(std::uint64_t seed) {
  Draw draw(seed);
  double worst = 0;
  for (const Norm::Kind kind : {Norm::Kind::rms, Norm::Kind::layer}) {
    Heads h = random_heads(draw);
    h.layer.q_bias = draw.normal({h.heads, h.d_k});
    h.layer.k_bias = draw.normal({h.groups, h.d_k});
    h.layer.v_bias = draw.normal({h.groups, h.d_v});
    h.change.q_bias = draw.normal({h.heads, h.d_k});
    const bool layer_norm = kind == Norm::Kind::layer;
    const auto random_norm = [&] {
      return Norm{kind, draw.normal({h.d}), layer_norm ? draw.normal({h.d}) : at::Tensor{}, 0};
    };
    h.layer.input = random_norm();
    h.layer.output = random_norm();
    if (draw.whole(0, 1) == 1) {
      h.change.input = random_norm();
      h.change.output = random_norm();
    }
    const Norm& behind = h.change.output ? *h.change.output : h.layer.output;
    const Norm& norm = h.change.input ? *h.change.input : h.layer.input;
    const at::Tensor x = draw.normal({6, h.d}), seen = normed(x, norm);
    const at::Tensor coordinates = homogeneous(x, kind);
    const auto all = circuits(h.layer, h.change, {.fold_norm = true, .homogeneous = true});
    const at::Tensor qk = sum_of_terms(circuit_of(all, Circuit::Kind::qk));
    const at::Tensor vo = sum_of_terms(circuit_of(all, Circuit::Kind::vo));
    for (std::int64_t i = 0; i < h.heads; ++i) {
      const std::int64_t g = i / (h.heads / h.groups);
      const at::Tensor q = at::matmul(seen, merged(h.layer.q, h.change.q)[i]) + h.layer.q_bias[i] +
                           h.change.q_bias[i];
      const at::Tensor k = at::matmul(seen, merged(h.layer.k, h.change.k)[g]) + h.layer.k_bias[g];
      const at::Tensor v = at::matmul(seen, merged(h.layer.v, h.change.v)[g]) + h.layer.v_bias[g];
      worst = std::max(worst, error_of(at::matmul(at::matmul(coordinates, qk[i]), coordinates.t()),
                                       at::matmul(q, k.t())));
      const at::Tensor message = at::matmul(v, merged(h.layer.o, h.change.o)[i]);
      worst = std::max(worst, error_of(at::matmul(coordinates, vo[i]), passed_on(message, behind)));
    }
  }
  return worst;
}

/// GPT-2's (part, head, width) columns and NeoX's (head, part, width) rows of one matrix with one
/// A.
double fused_projections(std::uint64_t seed) {
  Draw draw(seed);
  const std::int64_t heads = draw.whole(1, 4), width = draw.whole(3, 6), d = heads * width;
  double worst = 0;
  for (const bool part_first : {true, false}) {
    const Linear fused = linear(draw, 3 * d, d, 2);                  // [out, in], as NeoX stores it
    const auto rows = [&](const at::Tensor& x, std::int64_t part) {  // [heads, width, ..]
      return part_first ? x.view({3, heads, width, x.size(1)}).select(0, part)
                        : x.view({heads, 3, width, x.size(1)}).select(1, part);
    };
    AttentionLayer layer;
    LayerChange change;
    const at::Tensor a = fused.a.t().unsqueeze(0);
    at::Tensor* const weights[] = {&layer.q, &layer.k, &layer.v};
    MatrixChange* const changes[] = {&change.q, &change.k, &change.v};
    for (std::int64_t part = 0; part < 3; ++part) {
      *weights[part] = rows(fused.weight, part).transpose(1, 2);
      changes[part]->a = a;
      changes[part]->b = rows(fused.b, part).transpose(1, 2);
    }
    layer.o = draw.normal({heads, width, d});
    const auto all = circuits(layer, change);
    const Circuit qk = circuit_of(all, Circuit::Kind::qk);
    const at::Tensor whole = fused.merged();
    worst = std::max(worst,
                     error_of(sum_of_terms(qk), at::matmul(rows(whole, 0).mT(), rows(whole, 1))));
    worst = std::max(worst, error_of(sum_of_terms(circuit_of(all, Circuit::Kind::vo)),
                                     at::matmul(rows(whole, 2).mT(), layer.o)));
    const at::Tensor basis = std::get<0>(at::linalg_qr(fused.a.t()));
    const at::Tensor projector = at::matmul(basis, basis.t());
    const at::Tensor cross = dense_term(qk, "qk");
    worst = std::max(worst, error_of(at::matmul(at::matmul(projector, cross), projector), cross));
  }
  return worst;
}

/// DeepSeek's logits and messages from 16 + 8 + 8 terms, the latents' lengths of the adapted model.
double latents(std::uint64_t seed) {
  Draw draw(seed);
  const Latents m = random_latents(draw);
  const std::int64_t n = 5;
  const at::Tensor x = draw.normal({n, m.d});
  const auto length = [](const at::Tensor& y) { return y.square().mean(-1, true).sqrt(); };
  const at::Tensor c_q = at::matmul(x, m.q_a.merged().t());
  const at::Tensor down = at::matmul(x, m.kv_a.merged().t());
  const at::Tensor c_kv = down.narrow(1, 0, m.r_kv), key = down.narrow(1, m.r_kv, m.rope);
  const at::Tensor queries =
      at::matmul(c_q / length(c_q) * m.layer.q_latent.weight, m.q_b.merged().t());
  const at::Tensor up =
      at::matmul(c_kv / length(c_kv) * m.layer.kv_latent.weight, m.kv_b.merged().t());
  const auto all = circuits(m.layer, m.change);
  const Circuit nope = circuit_of(all, Circuit::Kind::qk);
  const Circuit rope = circuit_of(all, Circuit::Kind::qk_rope);
  const Circuit vo = circuit_of(all, Circuit::Kind::vo);
  double worst =
      terms_of(nope).size() == 16 && terms_of(rope).size() == 8 && terms_of(vo).size() == 8 ? 0 : 1;
  const at::Tensor m_nope = sum_of_terms(nope), m_vo = sum_of_terms(vo);
  std::vector<at::Tensor> m_rope;
  for (std::int64_t delta = 0; delta < n; ++delta) {
    m_rope.push_back(sum_of_terms(at_offset(rope, static_cast<double>(delta))));
  }
  const at::Tensor turned_key = at_positions(key.contiguous(), m.layer.rotary);
  for (std::int64_t i = 0; i < m.heads; ++i) {
    const at::Tensor q = queries.narrow(1, i * (m.nope + m.rope), m.nope + m.rope);
    const at::Tensor kv = up.narrow(1, i * (m.nope + m.value), m.nope + m.value);
    const at::Tensor turned =
        at_positions(q.narrow(1, m.nope, m.rope).contiguous(), m.layer.rotary);
    const at::Tensor expected = (at::matmul(q.narrow(1, 0, m.nope), kv.narrow(1, 0, m.nope).t()) +
                                 at::matmul(turned, turned_key.t()))
                                    .tril();
    at::Tensor found = at::matmul(at::matmul(x, m_nope[i]), x.t()) / length(c_q) / length(c_kv).t();
    for (std::int64_t a = 0; a < n; ++a) {
      for (std::int64_t b = 0; b <= a; ++b) {
        const at::Tensor& turn = m_rope[static_cast<std::size_t>(a - b)][i];
        found[a][b] += at::matmul(at::matmul(x[a], turn), x[b]) / length(c_q)[a][0];
      }
    }
    worst = std::max(worst, error_of(found.tril(), expected));
    const at::Tensor written =
        at::matmul(kv.narrow(1, m.nope, m.value), m.o.merged().narrow(1, i * m.value, m.value).t());
    worst = std::max(worst, error_of(at::matmul(x, m_vo[i]) / length(c_kv), written));
  }
  return worst;
}

}  // namespace

std::vector<Property> model_properties() {
  return {
      {"P11", "rotary logits at all positions; means, curves, frequencies; spans", 1e-11, rotation},
      {"P12", "biases as a coordinate, norms folded and trained, the adapter's own", 1e-12,
       biases_and_norms},
      {"P13", "fused projections of GPT-2 and NeoX; qk-term within span(A) twice", 1e-12,
       fused_projections},
      {"P14", "latent attention: 16 + 8 + 8 terms = logits and messages", 1e-11, latents},
  };
}

}  // namespace subspace::selftest
