#include "lora/composition.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace subspace {
namespace {

/// Of the null's law, between the ends of a score's band.
constexpr double kBand = 0.95;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double norm_of(const at::Tensor& x) { return x.norm().item<double>(); }
double dot_of(const at::Tensor& a, const at::Tensor& b) { return (a * b).sum().item<double>(); }

/// M^T M or M M^T, the smaller: both have the same nonzero eigenvalues.
at::Tensor gram_of(const at::Tensor& m) {
  return m.size(0) <= m.size(1) ? at::matmul(m, m.t()) : at::matmul(m.t(), m);
}

Spectrum2 spectrum_of(const at::Tensor& m) {
  if (m.numel() == 0) return {};
  const at::Tensor gram = gram_of(m);
  return {gram.trace().item<double>(), gram.square().sum().item<double>()};
}

/// Eigenvalues of the same, without those that rounding alone could have made.
at::Tensor energies(const at::Tensor& m) {
  if (m.numel() == 0) return at::empty({0}, m.options());
  const at::Tensor values = at::linalg_eigvalsh(gram_of(m));
  return values.masked_select(values > values.max() * 1e-13);
}

/// Base, adapted and change of a head's circuit as a writer [p, d] and as a reader [d, p].
std::array<at::Tensor, 3> circuits(const HeadWrite& w) {
  const at::Tensor change = at::matmul(w.a, w.b), adapted = w.o + change;
  return {at::matmul(w.left0, w.o), at::matmul(w.left0 + w.left1, adapted),
          at::matmul(w.left1, adapted) + at::matmul(w.left0, change)};
}
std::array<at::Tensor, 3> circuits(const HeadRead& r) {
  const at::Tensor change = at::matmul(r.a, r.b), adapted_far = r.right0 + r.right1;
  return {at::matmul(r.n, r.right0), at::matmul(r.n + change, adapted_far),
          at::matmul(change, adapted_far) + at::matmul(r.n, r.right1)};
}

template <typename Head>
void find_spectra(Head& head) {
  const std::array<at::Tensor, 3> all = circuits(head);
  head.base = spectrum_of(all[0]);
  head.adapted = spectrum_of(all[1]);
  head.delta = spectrum_of(all[2]);
}

template <typename Head>
Energies energies_of_all(const Head& head) {
  const std::array<at::Tensor, 3> all = circuits(head);
  return {energies(all[0]), energies(all[1]), energies(all[2])};
}

/// The triangular factor T of x = Q T.
at::Tensor triangle(const at::Tensor& x) { return std::get<1>(at::linalg_qr(x, "r")); }

/// S with S S^T = gram, for a positive semidefinite matrix.
at::Tensor root(const at::Tensor& gram) {
  const auto [values, vectors] = at::linalg_eigh((gram + gram.t()) * 0.5);
  return vectors * values.clamp_min(0).sqrt();
}

/// right0 and right1 for far = F and change = dF, [d, k] each.
void far_side(const at::Tensor& far, const at::Tensor& change, Mode mode, const RopeMean& rope,
              HeadRead& out) {
  const std::int64_t k = far.size(1);
  if (mode == Mode::v || !rope.turns()) {
    const at::Tensor t = triangle(at::cat({far, change}, 1));
    out.right0 = t.narrow(1, 0, k).t();
    out.right1 = t.narrow(1, k, k).t();
    return;
  }
  // The change is brought to the size of what it changes, so that the root keeps its digits.
  const double size = norm_of(far), change_size = norm_of(change);
  const double scale = change_size > 0 && size > 0 ? size / change_size : 1;
  const at::Tensor both = at::cat({far, change * scale}, 1);
  const at::Tensor gram = at::matmul(both.t(), both).view({2, k, 2, k}).transpose(1, 2);
  const at::Tensor mean = mode == Mode::q ? rope.key_side(gram) : rope.query_side(gram);
  const at::Tensor s = root(mean.transpose(1, 2).reshape({2 * k, 2 * k}));
  out.right0 = s.narrow(0, 0, k);
  out.right1 = s.narrow(0, k, k) / scale;
}

/// Change of a matrix that heads read with: A B of its group.
struct Near {
  at::Tensor w, a, b;
  at::Tensor change() const { return at::matmul(a, b); }
};
Near near_of(const Wiring& wiring, const Wiring::Reads& reads, std::int64_t head) {
  const std::int64_t group = wiring.group_of(head, reads);
  return {reads.w[group], reads.a, reads.b[group]};
}

}  // namespace

double quotient(double a, double b) { return b > 0 ? a / b : kNaN; }

const char* mode_name(Mode mode) { return mode == Mode::q ? "Q" : mode == Mode::k ? "K" : "V"; }

HeadWrite head_write(const Wiring& wiring, std::int64_t head) {
  const Near v = near_of(wiring, wiring.v, head);
  HeadWrite out;
  const std::int64_t d_v = v.w.size(1);
  const at::Tensor t = triangle(at::cat({v.w, v.change()}, 1));
  out.left0 = t.narrow(1, 0, d_v);
  out.left1 = t.narrow(1, d_v, d_v);
  out.o = wiring.o.w[head].clone(at::MemoryFormat::Contiguous);  // not a view that keeps the layer
  out.a = wiring.o.a[head];
  out.b = wiring.o.b;
  find_spectra(out);
  return out;
}

HeadRead head_read(const Wiring& wiring, std::int64_t head, Mode mode, const RopeMean& rope) {
  const Wiring::Reads& near_reads = mode == Mode::q   ? wiring.q
                                    : mode == Mode::k ? wiring.k
                                                      : wiring.v;
  const Near near = near_of(wiring, near_reads, head);
  HeadRead out;
  out.n = near.w.clone(at::MemoryFormat::Contiguous);
  out.a = near.a;
  out.b = near.b;
  if (mode == Mode::v) {
    const at::Tensor change = at::matmul(wiring.o.a[head], wiring.o.b);
    far_side(wiring.o.w[head].t(), change.t(), mode, rope, out);
  } else {
    const Near far = near_of(wiring, mode == Mode::q ? wiring.k : wiring.q, head);
    far_side(far.w, far.change(), mode, rope, out);
  }
  find_spectra(out);
  return out;
}

Energies energies_of(const HeadWrite& writer) { return energies_of_all(writer); }
Energies energies_of(const HeadRead& reader) { return energies_of_all(reader); }

PairScore composition_score(const HeadWrite& writer, const HeadRead& reader,
                            const at::Tensor& junction) {
  using at::matmul;
  const at::Tensor x = junction.defined() ? junction : matmul(writer.o, reader.n);
  // The junction with one or both of its sides new: O dN, dO N, dO dN.
  const at::Tensor old_new = matmul(matmul(writer.o, reader.a), reader.b);
  const at::Tensor new_old = matmul(writer.a, matmul(writer.b, reader.n));
  const at::Tensor new_new = matmul(matmul(writer.a, matmul(writer.b, reader.a)), reader.b);

  const at::Tensor& l0 = writer.left0;
  const at::Tensor& l1 = writer.left1;
  const at::Tensor& r0 = reader.right0;
  const at::Tensor& r1 = reader.right1;
  const at::Tensor r = r0 + r1;
  auto core = [](const at::Tensor& left, const at::Tensor& middle, const at::Tensor& right) {
    return matmul(matmul(left, middle), right);
  };
  const at::Tensor base = core(l0, x, r0);
  const at::Tensor parts[3] = {core(l0, old_new, r) + core(l0, x, r1),
                               core(l1, x + new_old, r0) + core(l0, new_old, r0),
                               core(l1, old_new + new_new, r) + core(l1, x + new_old, r1) +
                                   core(l0, new_new, r) + core(l0, new_old, r1)};
  const at::Tensor change = parts[0] + parts[1] + parts[2];
  const at::Tensor adapted = base + change;

  const double base_norm = norm_of(base), adapted_norm = norm_of(adapted),
               change_norm = norm_of(change);
  const double outer = std::sqrt(writer.base.trace * reader.base.trace);
  const double outer_adapted = std::sqrt(writer.adapted.trace * reader.adapted.trace);
  const auto d = static_cast<double>(writer.o.size(1));
  PairScore out;
  out.s = quotient(base_norm, outer);
  out.s1 = quotient(adapted_norm, outer_adapted);
  out.s1_base = quotient(adapted_norm, outer);
  out.rho = quotient(change_norm, outer);
  out.rho_interface = quotient(norm_of(core(l0, old_new + new_old + new_new, r0)), outer);
  out.cos = quotient(dot_of(base, adapted), base_norm * adapted_norm);
  out.band = haar_band(kBand, writer.o.size(1), writer.base, reader.base);
  out.band1 = haar_band(kBand, writer.o.size(1), writer.adapted, reader.adapted);
  if (outer_adapted > 0) {
    out.p_s1 = haar_p_value(out.s1 * out.s1, writer.o.size(1), writer.adapted, reader.adapted);
  }
  const Spectrum2* writers[3] = {&writer.base, &writer.delta, &writer.delta};
  const Spectrum2* readers[3] = {&reader.delta, &reader.base, &reader.delta};
  double least = 1;
  for (std::size_t i = 0; i < 3; ++i) {
    out.share[i] = quotient(dot_of(parts[i], change), change_norm * change_norm);
    const double square =
        quotient(parts[i].square().sum().item<double>(), writers[i]->trace * readers[i]->trace);
    out.lift[i] = square * d;
    out.p[i] =
        std::isnan(square) ? 1 : haar_p_value(square, writer.o.size(1), *writers[i], *readers[i]);
    least = std::min(least, out.p[i]);
  }
  out.p_gamma = std::min(1.0, 3 * least);
  return out;
}

}  // namespace subspace
