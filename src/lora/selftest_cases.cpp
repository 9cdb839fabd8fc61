#include "lora/selftest_cases.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <limits>

#include "base/error.h"

namespace subspace::selftest {

Draw::Draw(std::uint64_t seed) : generator_(at::detail::createCPUGenerator(seed)) {}

at::Tensor Draw::normal(at::IntArrayRef shape) {
  return at::randn(shape, generator_, at::TensorOptions().dtype(at::kDouble));
}

at::Tensor Draw::orthonormal(std::int64_t rows, std::int64_t columns) {
  return std::get<0>(at::linalg_qr(normal({rows, columns})));
}

at::Tensor Draw::invertible(std::int64_t n) {
  const at::Tensor scales = at::linspace(1, 3, n, at::kDouble);
  return at::matmul(orthonormal(n, n) * scales, orthonormal(n, n));
}

std::int64_t Draw::whole(std::int64_t least, std::int64_t most) {
  return at::randint(least, most + 1, {1}, generator_, at::kLong).item<std::int64_t>();
}

Linear linear(Draw& draw, std::int64_t out, std::int64_t in, std::int64_t rank) {
  Linear linear;
  linear.weight = draw.normal({out, in});
  if (rank > 0) {
    linear.a = draw.normal({rank, in});
    linear.b = draw.normal({out, rank}) * 0.3;
  }
  return linear;
}

namespace {

/// [n width, in] -> [n, in, width]
at::Tensor rows_of_heads(const at::Tensor& x, std::int64_t n) {
  return x.view({n, x.size(0) / n, x.size(1)}).transpose(1, 2);
}

MatrixChange reading_change(const Linear& linear, std::int64_t n) {
  if (!linear.a.defined()) return {};
  return {linear.a.t().unsqueeze(0), rows_of_heads(linear.b, n), {}, {}};
}

MatrixChange writing_change(const Linear& linear, std::int64_t n) {
  if (!linear.a.defined()) return {};
  const std::int64_t rank = linear.a.size(0), width = linear.a.size(1) / n;
  return {linear.a.view({rank, n, width}).permute({1, 2, 0}), linear.b.t().unsqueeze(0), {}, {}};
}

/// [out, n width] -> [n, width, out]
at::Tensor columns_of_heads(const at::Tensor& x, std::int64_t n) {
  return x.view({x.size(0), n, x.size(1) / n}).permute({1, 2, 0});
}

}  // namespace

void cut(Heads& h) {
  h.layer.q = rows_of_heads(h.q.weight, h.heads);
  h.layer.k = rows_of_heads(h.k.weight, h.groups);
  h.layer.v = rows_of_heads(h.v.weight, h.groups);
  h.layer.o = columns_of_heads(h.o.weight, h.heads);
  h.change.q = reading_change(h.q, h.heads);
  h.change.k = reading_change(h.k, h.groups);
  h.change.v = reading_change(h.v, h.groups);
  h.change.o = writing_change(h.o, h.heads);
}

Heads heads_of(Draw& draw, std::int64_t heads, std::int64_t groups, std::int64_t d,
               std::int64_t d_k, std::int64_t d_v, unsigned adapters) {
  Heads h{heads, groups, d, d_k, d_v, {}, {}, {}, {}, {}, {}};
  const auto rank = [&](unsigned which) {
    return (adapters & which) != 0 ? draw.whole(1, 3) : std::int64_t{0};
  };
  h.q = linear(draw, heads * d_k, d, rank(kQ));
  h.k = linear(draw, groups * d_k, d, rank(kK));
  h.v = linear(draw, groups * d_v, d, rank(kV));
  h.o = linear(draw, d, heads * d_v, rank(kO));
  cut(h);
  return h;
}

Heads random_heads(Draw& draw, unsigned adapters) {
  const std::int64_t groups = draw.whole(1, 3), heads = groups * draw.whole(1, 3);
  return heads_of(draw, heads, groups, draw.whole(24, 40), 2 * draw.whole(2, 4), draw.whole(3, 6),
                  adapters);
}

Latents random_latents(Draw& draw) {
  Latents m{draw.whole(1, 4),
            draw.whole(30, 48),
            draw.whole(3, 5),
            2 * draw.whole(1, 3),
            draw.whole(3, 5),
            draw.whole(12, 16),
            draw.whole(10, 14),
            {},
            {},
            {},
            {},
            {},
            {},
            {}};
  m.q_a = linear(draw, m.r_q, m.d, 2);
  m.q_b = linear(draw, m.heads * (m.nope + m.rope), m.r_q, 3);
  m.kv_a = linear(draw, m.r_kv + m.rope, m.d, 2);
  m.kv_b = linear(draw, m.heads * (m.nope + m.value), m.r_kv, 2);
  m.o = linear(draw, m.d, m.heads * m.value, 3);
  AttentionLayer& layer = m.layer;
  LayerChange& change = m.change;
  const auto parts = [](const at::Tensor& x, std::int64_t first, std::int64_t second) {
    return std::pair{x.narrow(2, 0, first), x.narrow(2, first, second)};
  };
  layer.qa = m.q_a.weight.t();
  std::tie(layer.q, layer.q_rope) = parts(rows_of_heads(m.q_b.weight, m.heads), m.nope, m.rope);
  layer.kva = m.kv_a.weight.t().narrow(1, 0, m.r_kv);
  layer.kpe = m.kv_a.weight.t().narrow(1, m.r_kv, m.rope);
  std::tie(layer.k, layer.v) = parts(rows_of_heads(m.kv_b.weight, m.heads), m.nope, m.value);
  layer.o = columns_of_heads(m.o.weight, m.heads);
  layer.q_latent = {Norm::Kind::rms, draw.normal({m.r_q}), {}, 1e-6};
  layer.kv_latent = {Norm::Kind::rms, draw.normal({m.r_kv}), {}, 1e-6};
  layer.rotary = random_rotary(draw, m.rope);
  layer.rotary.begin = 0;
  layer.rotary.dims = m.rope;
  layer.rotary.frequencies.assign(static_cast<std::size_t>(m.rope / 2), 0.4);
  layer.rotary.frequencies[0] = 1;

  change.qa = reading_change(m.q_a, 1);
  const MatrixChange q_b = reading_change(m.q_b, m.heads), kv_a = reading_change(m.kv_a, 1),
                     kv_b = reading_change(m.kv_b, m.heads);
  change.q.a = change.q_rope.a = q_b.a;
  std::tie(change.q.b, change.q_rope.b) = parts(q_b.b, m.nope, m.rope);
  change.kva.a = change.kpe.a = kv_a.a;
  std::tie(change.kva.b, change.kpe.b) = parts(kv_a.b, m.r_kv, m.rope);
  change.k.a = change.v.a = kv_b.a;
  std::tie(change.k.b, change.v.b) = parts(kv_b.b, m.nope, m.value);
  change.o = writing_change(m.o, m.heads);
  return m;
}

Rotary random_rotary(Draw& draw, std::int64_t k) {
  Rotary rotary;
  rotary.layout = draw.whole(0, 1) == 0 ? Rotary::Layout::half : Rotary::Layout::interleaved;
  const std::int64_t planes = draw.whole(1, k / 2);
  rotary.dims = 2 * planes;
  rotary.begin = draw.whole(0, k - rotary.dims);
  for (std::int64_t f = 0; f < planes; ++f) {
    rotary.frequencies.push_back(std::pow(7.0, -static_cast<double>(f)));
  }
  rotary.scale = draw.whole(0, 1) == 0 ? 1 : 1.1;
  return rotary;
}

at::Tensor at_positions(const at::Tensor& x, const Rotary& rotary) {
  at::Tensor out = x.clone(at::MemoryFormat::Contiguous);
  auto values = out.accessor<double, 2>();
  const std::int64_t planes = rotary.dims / 2;
  const bool half = rotary.layout == Rotary::Layout::half;
  for (std::int64_t m = 0; m < x.size(0); ++m) {
    for (std::int64_t f = 0; f < planes; ++f) {
      const std::int64_t first = rotary.begin + (half ? f : 2 * f);
      const std::int64_t second = rotary.begin + (half ? planes + f : 2 * f + 1);
      const double angle = static_cast<double>(m) * rotary.frequencies[static_cast<std::size_t>(f)];
      const double a = values[m][first], b = values[m][second];
      values[m][first] = rotary.scale * (a * std::cos(angle) - b * std::sin(angle));
      values[m][second] = rotary.scale * (b * std::cos(angle) + a * std::sin(angle));
    }
  }
  return out;
}

at::Tensor merged(const at::Tensor& weight, const MatrixChange& change) {
  at::Tensor out = weight.dim() == 2 ? weight.unsqueeze(0) : weight;
  if (change.a.defined()) out = out + at::matmul(change.a, change.b);
  if (change.gain.defined()) out = out * change.gain.unsqueeze(1);
  if (change.full.defined()) out = out + change.full;
  return out;
}

Circuit circuit_of(const std::vector<Circuit>& circuits, Circuit::Kind kind) {
  for (const Circuit& circuit : circuits) {
    if (circuit.kind == kind) return circuit;
  }
  fail(ErrorCode::Internal, "no such circuit");
}

at::Tensor sum_of_terms(const Circuit& circuit) {
  at::Tensor sum;
  for (const Term& term : terms_of(circuit)) {
    const at::Tensor part = term_factors(circuit, term).dense();
    sum = sum.defined() ? sum + part : part;
  }
  return sum;
}

at::Tensor dense_term(const Circuit& circuit, const std::string& name) {
  for (const Term& term : terms_of(circuit)) {
    if (term.name == name) return term_factors(circuit, term).dense();
  }
  fail(ErrorCode::Internal, "no term {}", name);
}

double error_of(const at::Tensor& found, const at::Tensor& expected) {
  if (found.sizes() != expected.sizes()) return std::numeric_limits<double>::infinity();
  if (found.numel() == 0) return 0;
  const double most = expected.abs().max().item<double>();
  const double error = (found - expected).abs().max().item<double>() / (most > 0 ? most : 1);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

double largest(const at::Tensor& x) {
  const double most = x.numel() == 0 ? 0 : x.abs().max().item<double>();
  return std::isfinite(most) ? most : std::numeric_limits<double>::infinity();
}

std::int64_t rank_of(const at::Tensor& x, double tolerance) {
  const at::Tensor s = at::linalg_svdvals(x);
  return (s > tolerance * s[0]).sum().item<std::int64_t>();
}

}  // namespace subspace::selftest
