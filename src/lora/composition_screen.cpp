#include "lora/composition_screen.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/random.h"
#include "lora/low_rank.h"

namespace subspace {
namespace {

using at::matmul;

constexpr std::int64_t kExactColumns = 512;
constexpr std::int64_t kProbes = 32;
constexpr std::int64_t kWidestDouble = 1024;

at::ScalarType wide_type(std::int64_t width) {
  return width > kWidestDouble ? at::kFloat : at::kDouble;
}

/// [heads, ..] summed over the heads of a group.
at::Tensor for_groups(const at::Tensor& x, std::int64_t groups) {
  return x.size(0) == groups ? x : x.unflatten(0, {groups, -1}).sum(1);
}

/// x^T x of every head, [n, d, k] -> [n, k, k].
at::Tensor gram(const at::Tensor& x) { return matmul(x.transpose(1, 2), x).to(at::kDouble); }

/// With the wide matrices in the type of the wide products.
Wiring narrowed(const Wiring& wiring) {
  Wiring out = wiring;
  const at::ScalarType type = wide_type(wiring.width());
  for (at::Tensor* w : {&out.q.w, &out.k.w, &out.v.w, &out.o.w}) *w = w->to(type);
  return out;
}

/// Orthonormal basis of the columns, directions lost in rounding left out.
at::Tensor basis_of(const at::Tensor& columns) {
  if (columns.size(1) == 0) return columns;
  const auto [u, s, v] = at::linalg_svd(columns, false);
  const double largest = s[0].item<double>();
  const double tolerance =
      static_cast<double>(columns.size(0)) * largest * std::numeric_limits<double>::epsilon();
  const std::int64_t rank = (s > tolerance).sum().item<std::int64_t>();
  return u.narrow(1, 0, rank);
}

/// Of A C A^T with A [d, r], C [r, r].
Spectrum2 core_spectrum(const at::Tensor& c, const at::Tensor& a_gram) {
  if (c.numel() == 0) return {};
  const at::Tensor m = matmul(c, a_gram);
  return {m.trace().item<double>(), std::max(0.0, (m * m.t()).sum().item<double>())};
}

/// Inner products of all pairs: sum over the last two axes of a_i b_j, [H, m, n] each.
at::Tensor all_pairs(const at::Tensor& a, const at::Tensor& b) {
  return matmul(a.flatten(1), b.flatten(1).t());
}

double total_of(const at::Tensor& x) { return x.sum().item<double>(); }

const Wiring::Reads& near_side(const Wiring& wiring, Mode mode) {
  return mode == Mode::q ? wiring.q : mode == Mode::k ? wiring.k : wiring.v;
}

}  // namespace

double stacked_square(const at::Tensor& n, const at::Tensor& f) {
  const std::int64_t count = n.size(0), d = n.size(1), k = n.size(2);
  if (count * k <= kExactColumns) {
    const at::Tensor columns = n.to(at::kDouble).permute({1, 0, 2}).reshape({d, count * k});
    const at::Tensor g = matmul(columns.t(), columns).view({count, k, count * k});
    const at::Tensor product = matmul(f, g).view({count * k, count * k});
    return total_of(product * product.t());
  }
  at::Tensor probes = at::empty({d, kProbes}, at::kDouble);
  Random random(0, 0x636f6d70);
  auto* values = probes.data_ptr<double>();
  for (std::int64_t i = 0; i < probes.numel(); ++i) values[i] = random.normal();
  const at::ScalarType type = n.scalar_type();
  // [n k, d] [d, m], then back: two passes over N and one small product a head between.
  const at::Tensor rows = n.transpose(1, 2).reshape({count * k, d});
  const at::Tensor inner =
      matmul(f.to(type), matmul(rows, probes.to(type)).view({count, k, kProbes}));
  const at::Tensor image = matmul(rows.t(), inner.reshape({count * k, kProbes}));
  return total_of(image.to(at::kDouble).square()) / static_cast<double>(kProbes);
}

CompositionScreen::CompositionScreen(std::vector<std::int64_t> layers,
                                     std::vector<at::Tensor> writes,
                                     std::vector<std::int64_t> offsets)
    : layers_(std::move(layers)),
      writes_(std::move(writes)),
      offsets_(std::move(offsets)),
      left_(layers_.size()) {
  if (writes_.size() != layers_.size() || !std::ranges::is_sorted(layers_)) {
    fail(ErrorCode::Internal, "composition screen: one B_o a layer, layers rising");
  }
}

void CompositionScreen::read_side(const Wiring& wiring, const Grams& grams, Mode mode,
                                  const RopeMean& rope, std::size_t place) {
  const std::int64_t heads = wiring.heads();
  const Wiring::Reads& near = near_side(wiring, mode);
  const at::Tensor far = for_heads(mode == Mode::q   ? rope.key_side(grams.k)
                                   : mode == Mode::k ? rope.query_side(grams.q)
                                                     : grams.o,
                                   heads);
  const at::Tensor near_gram = mode == Mode::q ? grams.q : mode == Mode::k ? grams.k : grams.v;
  ReadSide out;
  out.a = near.a;
  out.basis = basis_of(near.a);
  const at::Tensor b = for_heads(near.b, heads);
  out.q11 = matmul(matmul(b, far), b.transpose(1, 2));
  out.norms = (for_heads(near_gram, heads) * far).sum({1, 2});
  out.base = {total_of(out.norms), stacked_square(near.w, for_groups(far, near.w.size(0)))};
  out.delta = core_spectrum(out.q11.sum(0), matmul(out.a.t(), out.a));

  // U = B_o N of every earlier layer in one product.
  std::vector<at::Tensor> earlier(writes_.begin(),
                                  writes_.begin() + static_cast<std::ptrdiff_t>(place));
  if (!earlier.empty()) {
    const at::Tensor stacked = at::cat(earlier, 0).to(near.w.scalar_type());
    const std::int64_t groups = near.w.size(0), k = near.w.size(2);
    const at::Tensor rows = near.w.transpose(1, 2).reshape({groups * k, -1});
    const at::Tensor u = for_heads(matmul(rows, stacked.t())
                                       .to(at::kDouble)
                                       .view({groups, k, stacked.size(0)})
                                       .transpose(1, 2)
                                       .contiguous(),
                                   heads);  // [H, all r_o, k]
    const at::Tensor turned = matmul(u, far);
    std::int64_t begin = 0;
    for (std::size_t writer = 0; writer < place; ++writer) {
      const std::int64_t r = writes_[writer].size(0);
      const at::Tensor own = u.narrow(1, begin, r), own_turned = turned.narrow(1, begin, r);
      tables_[{writer, place}][static_cast<std::size_t>(mode)] = {
          matmul(b, own_turned.transpose(1, 2)), matmul(own_turned, own.transpose(1, 2))};
      begin += r;
    }
  }
  reads_[{place, mode}] = std::move(out);
}

CompositionScreen::WriteSide CompositionScreen::write_side(const Wiring& wiring, const Grams& grams,
                                                           std::size_t place) const {
  WriteSide out;
  out.far = for_heads(grams.v, wiring.heads());
  out.far_a = matmul(out.far, wiring.o.a);
  out.p22 = matmul(wiring.o.a.transpose(1, 2), out.far_a);
  out.norms = (out.far * grams.o).sum({1, 2});
  out.b = writes_[place];
  out.basis = basis_of(out.b.t());
  out.base = {total_of(out.norms), stacked_square(wiring.o.w.transpose(1, 2), out.far)};
  out.delta = core_spectrum(out.p22.sum(0), matmul(out.b, out.b.t()));
  return out;
}

LayerPairScreen CompositionScreen::screen(const WriteSide& writes, const ReadSide& reads,
                                          const ReadTable& table, const at::Tensor& p11,
                                          const at::Tensor& p12) const {
  const at::Tensor c = matmul(writes.b, reads.a);  // B_o A_x, [r_o, r_x]
  const at::Tensor bb = all_pairs(p11, reads.q11);
  const at::Tensor nn_core = matmul(matmul(c.t(), writes.p22), c);
  const at::Tensor energy[3] = {bb, all_pairs(writes.p22, table.q22),
                                all_pairs(nn_core, reads.q11)};
  const at::Tensor bn_nb = all_pairs(p12, table.q12);
  const at::Tensor bn_nn = all_pairs(matmul(p12, c), reads.q11);
  const at::Tensor nb_nn = all_pairs(matmul(writes.p22, c), table.q12.transpose(1, 2));
  const at::Tensor inner[3] = {energy[0] + bn_nb + bn_nn, energy[1] + bn_nb + nb_nn,
                               energy[2] + bn_nn + nb_nn};
  const at::Tensor square = (inner[0] + inner[1] + inner[2]).clamp_min(0);

  LayerPairScreen out;
  const at::Tensor outer = writes.norms.unsqueeze(1) * reads.norms;
  out.rho_heads = at::where(outer > 0, (square / outer).sqrt(), at::zeros_like(square));
  const std::int64_t best = out.rho_heads.argmax().item<std::int64_t>();
  out.head_writer = best / out.rho_heads.size(1);
  out.head_reader = best % out.rho_heads.size(1);
  out.rho_max = out.rho_heads.flatten()[best].item<double>();
  const double total = total_of(square);
  out.rho = std::sqrt(quotient(total, writes.base.trace * reads.base.trace));
  const Spectrum2* factors[3][2] = {
      {&writes.base, &reads.delta}, {&writes.delta, &reads.base}, {&writes.delta, &reads.delta}};
  const std::int64_t d = reads.a.size(0);
  double least = 1;
  for (std::size_t i = 0; i < 3; ++i) {
    const Spectrum2 &w = *factors[i][0], &r = *factors[i][1];
    const double score = quotient(total_of(energy[i]), w.trace * r.trace);
    out.share[i] = quotient(total_of(inner[i]), total);
    out.lift[i] = score * static_cast<double>(d);
    out.p[i] = std::isnan(score) ? 1 : haar_p_value(score, d, w, r);
    least = std::min(least, out.p[i]);
  }
  out.p_gamma = std::min(1.0, 3 * least);
  if (writes.basis.size(1) > 0 && reads.basis.size(1) > 0) {
    const at::Tensor cosines =
        at::linalg_svdvals(matmul(writes.basis.t(), reads.basis)).clamp(0, 1).contiguous();
    out.cosines.assign(cosines.data_ptr<double>(), cosines.data_ptr<double>() + cosines.numel());
  }
  return out;
}

std::vector<LayerPairScreen> CompositionScreen::finish(const Wiring& wiring,
                                                       const WriteSide& writes, std::size_t place) {
  std::vector<LayerPairScreen> found;
  std::vector<at::Tensor> later;
  for (std::size_t reader = place + 1; reader < layers_.size(); ++reader) {
    for (const Mode mode : kModes) later.push_back(reads_.at({reader, mode}).a);
  }
  if (later.empty()) return found;
  // O A_x of every later layer and mode in one product.
  const at::Tensor all = at::cat(later, 1).to(wiring.o.w.scalar_type());
  const std::int64_t heads = wiring.heads(), d_v = wiring.o.w.size(1);
  const at::Tensor rows = wiring.o.w.reshape({heads * d_v, -1});
  const at::Tensor table = matmul(rows, all).to(at::kDouble).view({heads, d_v, -1});
  const at::Tensor weighted = matmul(writes.far, table);
  std::int64_t begin = 0;
  for (std::size_t reader = place + 1; reader < layers_.size(); ++reader) {
    const auto tables = tables_.extract({place, reader});
    for (const Mode mode : kModes) {
      const ReadSide& reads = reads_.at({reader, mode});
      const std::int64_t r = reads.a.size(1);
      const at::Tensor own = table.narrow(2, begin, r).transpose(1, 2);
      const at::Tensor p11 = matmul(own, weighted.narrow(2, begin, r));
      LayerPairScreen one = screen(writes, reads, tables.mapped()[static_cast<std::size_t>(mode)],
                                   p11, matmul(own, writes.far_a));
      one.writer = layers_[place];
      one.reader = layers_[reader];
      one.mode = mode;
      found.push_back(std::move(one));
      begin += r;
    }
  }
  return found;
}

std::vector<LayerPairScreen> CompositionScreen::add(const Wiring& layer) {
  if (left_ == 0 || layers_[left_ - 1] != layer.index) {
    fail(ErrorCode::Internal, "composition screen: layer {} out of turn", layer.index);
  }
  const std::size_t place = --left_;
  const Wiring wiring = narrowed(layer);
  const RopeMean rope(wiring.rotary, wiring.q.w.size(2), offsets_);
  const Grams grams{gram(wiring.q.w), gram(wiring.k.w), gram(wiring.v.w),
                    gram(wiring.o.w.transpose(1, 2))};
  // The first layer reads no earlier one, the last one writes to none.
  if (place > 0) {
    for (const Mode mode : kModes) read_side(wiring, grams, mode, rope, place);
  }
  if (place + 1 == layers_.size()) return {};
  return finish(wiring, write_side(wiring, grams, place), place);
}

}  // namespace subspace
