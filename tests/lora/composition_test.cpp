#include "lora/composition.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "attention/fused.h"
#include "base/error.h"
#include "lora/composition_screen.h"
#include "lora/random_layer.h"

namespace subspace {
namespace {

using at::matmul;
using testing::normal;
using testing::RandomLayer;

double norm_of(const at::Tensor& x) { return x.norm().item<double>(); }

void expect_near(double found, double expected, double bound = 1e-12) {
  const double error = std::abs(found - expected);
  EXPECT_TRUE(error <= bound * std::max(1.0, std::abs(expected))) << found << " vs " << expected;
}

/// Everything d x d, by the definitions.
struct Dense {
  at::Tensor q, k, v, o;
  static at::Tensor of(const at::Tensor& w, const MatrixChange& change, bool adapted) {
    return adapted && change.a.defined() ? w + matmul(change.a, change.b) : w;
  }
  Dense(const RandomLayer& random, bool adapted)
      : q(of(random.layer.q, random.change.q, adapted)),
        k(of(random.layer.k, random.change.k, adapted)),
        v(of(random.layer.v, random.change.v, adapted)),
        o(of(random.layer.o, random.change.o, adapted)) {}
  std::int64_t group(std::int64_t head) const { return head / (q.size(0) / k.size(0)); }
  at::Tensor writer(std::int64_t head) const { return matmul(v[group(head)], o[head]); }
  at::Tensor reader(std::int64_t head, Mode mode, const Rotary& rotary, std::int64_t offset) const {
    if (mode == Mode::v) return writer(head);
    at::Tensor query = q[head];
    if (rotary.layout != Rotary::Layout::none) {
      query = rotate(query, rotary, static_cast<double>(offset));
    }
    const at::Tensor pattern = matmul(query, k[group(head)].t());
    return mode == Mode::q ? pattern : pattern.t();
  }
};

Rotary rotary(Rotary::Layout layout, std::int64_t begin = 0) {
  return {layout, 4, begin, {1.0, 0.3}, 1.2};
}

/// The scores of one pair from dense products: sums over the offsets of squares and inner products.
struct DenseScore {
  double base = 0, adapted = 0, change = 0, dot = 0;
  double m = 0, m1 = 0, n = 0, n1 = 0, dm = 0, dn = 0, interface = 0;
  double share[3] = {}, energy[3] = {};

  DenseScore(const RandomLayer& w, std::int64_t i, const RandomLayer& r, std::int64_t j, Mode mode,
             const std::vector<std::int64_t>& offsets) {
    const Dense wb(w, false), wa(w, true), rb(r, false), ra(r, true);
    const at::Tensor m0 = wb.writer(i), m_new = wa.writer(i);
    RandomLayer inner_w = w, inner_r = r;
    inner_w.change.v = {};
    if (mode == Mode::q) inner_r.change.k = inner_r.change.v = inner_r.change.o = {};
    if (mode == Mode::k) inner_r.change.q = inner_r.change.v = inner_r.change.o = {};
    if (mode == Mode::v) inner_r.change.o = {};
    const Dense iw(inner_w, true), ir(inner_r, true);
    m = m0.square().sum().item<double>();
    m1 = m_new.square().sum().item<double>();
    dm = (m_new - m0).square().sum().item<double>();
    for (const std::int64_t offset : offsets) {
      const Rotary& turn = r.layer.rotary;
      const at::Tensor n0 = rb.reader(j, mode, turn, offset),
                       n_new = ra.reader(j, mode, turn, offset);
      const at::Tensor before = matmul(m0, n0), after = matmul(m_new, n_new), d = after - before;
      const at::Tensor parts[3] = {matmul(m0, n_new - n0), matmul(m_new - m0, n0),
                                   matmul(m_new - m0, n_new - n0)};
      base += before.square().sum().item<double>();
      adapted += after.square().sum().item<double>();
      change += d.square().sum().item<double>();
      dot += (before * after).sum().item<double>();
      n += n0.square().sum().item<double>();
      n1 += n_new.square().sum().item<double>();
      dn += (n_new - n0).square().sum().item<double>();
      interface += (matmul(iw.writer(i), ir.reader(j, mode, turn, offset)) - before)
                       .square()
                       .sum()
                       .item<double>();
      for (int a = 0; a < 3; ++a) {
        share[a] += (parts[a] * d).sum().item<double>();
        energy[a] += parts[a].square().sum().item<double>();
      }
    }
    const auto count = static_cast<double>(offsets.size());
    m *= count;
    m1 *= count;
    dm *= count;
  }
};

struct Case {
  const char* name;
  std::int64_t heads, groups;
  const char* writer_on;
  const char* reader_on;
  Rotary rotary;
  std::vector<std::int64_t> offsets;
};

const Case kCases[] = {
    {"mha", 3, 3, "qkvo", "qkvo", {}, {0}},
    {"gqa", 4, 2, "qkvo", "qkvo", {}, {0}},
    {"mqa_qv_only", 4, 1, "qv", "qv", {}, {0}},
    {"ko_only", 4, 2, "ko", "ko", {}, {0}},
    {"rope_half", 4, 2, "qkvo", "qkvo", rotary(Rotary::Layout::half), {0, 1, 5, 9}},
    {"rope_pairs_tail", 4, 2, "qkvo", "qkvo", rotary(Rotary::Layout::interleaved, 1), {0, 3, 4}},
    {"rope_one_offset", 2, 2, "qkvo", "qkvo", rotary(Rotary::Layout::half), {7}},
};

RandomLayer layer_of(const Case& one, std::int64_t index, const char* on) {
  RandomLayer out(index, 23, one.heads, one.groups, 5, 4, on);
  out.layer.rotary = one.rotary;
  return out;
}

class Composition : public ::testing::TestWithParam<Case> {};

// P16: factored scores are the dense ones, the parts sum to the change, GQA, rotary offsets.
TEST_P(Composition, ScoresAreThoseOfDenseProducts) {
  at::manual_seed(3);
  const Case& one = GetParam();
  const RandomLayer w = layer_of(one, 0, one.writer_on), r = layer_of(one, 1, one.reader_on);
  const Wiring writer = wiring_of(w.layer, w.change), reader = wiring_of(r.layer, r.change);
  const RopeMean rope(r.layer.rotary, 5, one.offsets);
  const std::int64_t i = one.heads - 1, j = 1;
  for (const Mode mode : kModes) {
    SCOPED_TRACE(mode_name(mode));
    const PairScore found =
        composition_score(head_write(writer, i), head_read(reader, j, mode, rope));
    // A writer's mode V reads no offset: one term of the sum stands for all.
    const DenseScore dense(w, i, r, j, mode,
                           mode == Mode::v ? std::vector<std::int64_t>{0} : one.offsets);
    const double scale = mode == Mode::v ? 1 : static_cast<double>(one.offsets.size());
    const double outer = std::sqrt(dense.m / scale * dense.n / scale) * scale;
    expect_near(found.s, std::sqrt(dense.base) / std::sqrt(dense.m * dense.n / scale));
    expect_near(found.s1, std::sqrt(dense.adapted) / std::sqrt(dense.m1 * dense.n1 / scale));
    expect_near(found.s1_base, std::sqrt(dense.adapted / scale) / (outer / scale));
    expect_near(found.rho, std::sqrt(dense.change / scale) / (outer / scale));
    expect_near(found.rho_interface, std::sqrt(dense.interface / scale) / (outer / scale));
    expect_near(found.cos, dense.dot / std::sqrt(dense.base * dense.adapted));
    double sum = 0;
    const double factors[3] = {dense.m * dense.dn, dense.dm * dense.n, dense.dm * dense.dn};
    for (std::size_t a = 0; a < 3; ++a) {
      if (dense.change > 0) {
        expect_near(found.share[a], dense.share[a] / dense.change, 1e-11);
        sum += found.share[a];
      }
      if (factors[a] > 1e-20) {
        expect_near(found.lift[a], 23 * dense.energy[a] / (factors[a] / scale), 1e-11);
      }
    }
    if (dense.change > 0) expect_near(sum, 1);
  }
}

// P18: a score never exceeds 1 / sqrt(stable rank) of either factor.
TEST_P(Composition, ScoreIsBoundedByTheStableRanks) {
  at::manual_seed(4);
  const Case& one = GetParam();
  const RandomLayer w = layer_of(one, 0, one.writer_on), r = layer_of(one, 1, one.reader_on);
  const Dense writer(w, false), reader(r, false);
  const RopeMean rope(r.layer.rotary, 5, {0});
  for (const Mode mode : kModes) {
    const PairScore found =
        composition_score(head_write(wiring_of(w.layer, w.change), 0),
                          head_read(wiring_of(r.layer, r.change), 0, mode, rope));
    const at::Tensor m = writer.writer(0), n = reader.reader(0, mode, r.layer.rotary, 0);
    for (const at::Tensor& factor : {m, n}) {
      const double bound = at::linalg_svdvals(factor)[0].item<double>() / norm_of(factor);
      EXPECT_TRUE(found.s <= bound * (1 + 1e-12)) << found.s << " > " << bound;
    }
  }
}

TEST_P(Composition, ScreenIsTheInterfacePartOfAllPairsOfHeads) {
  at::manual_seed(5);
  const Case& one = GetParam();
  std::vector<RandomLayer> layers;
  std::vector<at::Tensor> writes;
  for (std::int64_t i = 0; i < 3; ++i) {
    layers.push_back(layer_of(one, i, i == 2 ? one.reader_on : one.writer_on));
    const MatrixChange& o = layers.back().change.o;
    writes.push_back(o.b.defined() ? o.b[0] : at::zeros({0, 23}, at::kDouble));
  }
  CompositionScreen screen({0, 1, 2}, writes, one.offsets);
  std::vector<LayerPairScreen> found;
  for (std::int64_t i = 3; i-- > 0;) {
    const RandomLayer& layer = layers[static_cast<std::size_t>(i)];
    for (LayerPairScreen& pair : screen.add(wiring_of(layer.layer, layer.change))) {
      found.push_back(std::move(pair));
    }
  }
  ASSERT_EQ(found.size(), 9U);
  for (const LayerPairScreen& pair : found) {
    const RandomLayer& w = layers[static_cast<std::size_t>(pair.writer)];
    const RandomLayer& r = layers[static_cast<std::size_t>(pair.reader)];
    const auto offsets = pair.mode == Mode::v ? std::vector<std::int64_t>{0} : one.offsets;
    const auto count = static_cast<double>(offsets.size());
    double change = 0, m = 0, n = 0, largest = 0;
    for (std::int64_t i = 0; i < one.heads; ++i) {
      for (std::int64_t j = 0; j < one.heads; ++j) {
        const DenseScore dense(w, i, r, j, pair.mode, offsets);
        const double rho = std::sqrt(dense.interface / count / (dense.m / count * dense.n / count));
        expect_near(pair.rho_heads[i][j].item<double>(), rho, 1e-10);
        largest = std::max(largest, rho);
        change += dense.interface / count;
        if (j == 0) m += dense.m / count;
        if (i == 0) n += dense.n / count;
      }
    }
    expect_near(pair.rho_max, largest, 1e-10);
    expect_near(pair.rho_heads[pair.head_writer][pair.head_reader].item<double>(), pair.rho_max);
    expect_near(pair.rho, std::sqrt(change / (m * n)), 1e-10);
    if (change > 0) expect_near(pair.share[0] + pair.share[1] + pair.share[2], 1, 1e-10);
    EXPECT_TRUE(pair.p_gamma >= 0 && pair.p_gamma <= 1);
    for (const double cosine : pair.cosines) EXPECT_TRUE(cosine >= 0 && cosine <= 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Composition, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.name; });

// E4 of the specification.
TEST(CompositionByHand, QueryAdapterMeetsTheWriter) {
  auto row = [](std::vector<double> values) { return at::tensor(values, at::kDouble); };
  RandomLayer w(0, 3, 1, 1, 1, 1, ""), r(1, 3, 1, 1, 1, 1, "q", 1);
  w.layer.v = row({1, 0, 0}).view({1, 3, 1});
  w.layer.o = row({0, 1, 0}).view({1, 1, 3});
  r.layer.q = row({0, 0, 1}).view({1, 3, 1});
  r.layer.k = row({1, 0, 0}).view({1, 3, 1});
  r.change.q.a = row({0, 1, 0}).view({1, 3, 1});
  r.change.q.b = row({1}).view({1, 1, 1});
  const Wiring reader = wiring_of(r.layer, r.change);
  const PairScore found = composition_score(head_write(wiring_of(w.layer, w.change), 0),
                                            head_read(reader, 0, Mode::q, RopeMean({}, 1, {0})));
  EXPECT_EQ(found.s, 0);
  expect_near(found.s1, 1 / std::sqrt(2));
  expect_near(found.rho, 1);
  expect_near(found.share[0], 1);
  expect_near(found.lift[0], 3);
  EXPECT_TRUE(std::isnan(found.lift[1]) && std::isnan(found.lift[2]));
  EXPECT_TRUE(std::isnan(found.cos));
}

TEST(Composition, NoAdapterIsNoChange) {
  at::manual_seed(6);
  const RandomLayer w(0, 11, 2, 2, 3, 3, ""), r(1, 11, 2, 2, 3, 3, "");
  const Wiring reader = wiring_of(r.layer, r.change);
  for (const Mode mode : kModes) {
    const PairScore found = composition_score(head_write(wiring_of(w.layer, w.change), 0),
                                              head_read(reader, 1, mode, RopeMean({}, 3, {0})));
    EXPECT_EQ(found.rho, 0);
    EXPECT_EQ(found.s, found.s1);
    expect_near(found.cos, 1);
    EXPECT_EQ(found.p_gamma, 1);
    EXPECT_TRUE(std::isnan(found.share[0]));
  }
}

// A change of a billionth keeps its digits: nothing is found by subtracting.
TEST(Composition, SmallChangesKeepTheirDigits) {
  at::manual_seed(7);
  RandomLayer w(0, 17, 2, 2, 3, 4), r(1, 17, 2, 2, 3, 4);
  auto rho = [&](double size, Mode mode) {
    RandomLayer small_w = w, small_r = r;
    for (RandomLayer* layer : {&small_w, &small_r}) {
      for (MatrixChange* change :
           {&layer->change.q, &layer->change.k, &layer->change.v, &layer->change.o}) {
        change->b = change->b * size;
      }
    }
    return composition_score(
               head_write(wiring_of(small_w.layer, small_w.change), 0),
               head_read(wiring_of(small_r.layer, small_r.change), 0, mode, RopeMean({}, 3, {0})))
        .rho;
  };
  for (const Mode mode : kModes) {
    // rho(s) = s first-order + s^2 ..: the quotient of two tiny sizes is theirs.
    const double ratio = rho(1e-9, mode) / rho(1e-10, mode);
    EXPECT_TRUE(std::abs(ratio - 10) <= 1e-6) << ratio;
  }
}

TEST(RopeMean, IsTheMeanOfTurnedGrams) {
  at::manual_seed(8);
  const std::vector<std::int64_t> offsets = {0, 2, 3, 11};
  for (const Rotary& turn : {rotary(Rotary::Layout::half), rotary(Rotary::Layout::interleaved, 2),
                             rotary(Rotary::Layout::half, 3)}) {
    for (const std::int64_t width : {std::int64_t{7}, std::int64_t{8}}) {
      const RopeMean mean(turn, width, offsets);
      const at::Tensor a = normal({2, 9, width}), b = normal({2, 9, width});
      at::Tensor key = at::zeros({2, width, width}, at::kDouble), query = at::zeros_like(key);
      for (const std::int64_t offset : offsets) {
        const auto delta = static_cast<double>(offset);
        key += matmul(rotate(a, turn, -delta).transpose(1, 2), rotate(b, turn, -delta)) / 4;
        query += matmul(rotate(a, turn, delta).transpose(1, 2), rotate(b, turn, delta)) / 4;
      }
      const at::Tensor gram = matmul(a.transpose(1, 2), b);
      const double key_error = norm_of(mean.key_side(gram) - key) / norm_of(key);
      const double query_error = norm_of(mean.query_side(gram) - query) / norm_of(query);
      EXPECT_TRUE(key_error <= 1e-14) << key_error;
      EXPECT_TRUE(query_error <= 1e-14) << query_error;
    }
  }
  EXPECT_THROW(RopeMean({}, 4, {}), Error);
}

TEST(StackedSquare, ExactIsDenseAndTheEstimateIsClose) {
  at::manual_seed(9);
  auto check = [](std::int64_t heads, std::int64_t d, std::int64_t k, double bound) {
    const at::Tensor n = normal({heads, d, k});
    const at::Tensor root = normal({heads, k, k}), f = matmul(root, root.transpose(1, 2));
    const at::Tensor dense = matmul(matmul(n, f), n.transpose(1, 2)).sum(0);
    const double found = stacked_square(n, f), square = dense.square().sum().item<double>();
    EXPECT_TRUE(std::abs(found / square - 1) <= bound) << found / square;
  };
  check(3, 40, 5, 1e-12);
  check(40, 300, 16, 0.1);
}

TEST(Wiring, NormsAreFoldedIntoWhatReadsThem) {
  at::manual_seed(10);
  for (const Norm::Kind kind : {Norm::Kind::rms, Norm::Kind::layer}) {
    RandomLayer random(0, 13, 4, 2, 4, 5);
    random.layer.input = {kind, normal({13}), {}, 1e-6};
    random.layer.q_head = {Norm::Kind::rms, normal({4}), {}, 1e-6};
    const Wiring found = wiring_of(random.layer, random.change);
    // The sum of base and change, folded, is the folded sum.
    AttentionLayer merged = random.layer;
    merged.q = merged.q + matmul(random.change.q.a, random.change.q.b);
    merged.k = merged.k + matmul(random.change.k.a, random.change.k.b);
    merged.v = merged.v + matmul(random.change.v.a, random.change.v.b);
    merged = fold_norms(merged);
    EXPECT_TRUE(norm_of(found.q.w + matmul(found.q.a, found.q.b) - merged.q) <=
                1e-12 * norm_of(merged.q));
    EXPECT_TRUE(norm_of(found.k.w + matmul(found.k.a, found.k.b) - merged.k) <=
                1e-12 * norm_of(merged.k));
    EXPECT_TRUE(norm_of(found.v.w + matmul(found.v.a, found.v.b) - merged.v) <=
                1e-12 * norm_of(merged.v));
    EXPECT_EQ(found.approx, std::set<std::string>{"qk_norm"});
  }
}

TEST(Wiring, LatentAttentionIsWhatItsHeadsReadInModelSpace) {
  at::manual_seed(11);
  constexpr std::int64_t d = 19, rq = 7, rkv = 6, heads = 3, nope = 4, rope = 2, value = 5, r = 2;
  AttentionLayer layer;
  layer.qa = normal({d, rq});
  layer.kva = normal({d, rkv});
  layer.kpe = normal({d, rope});
  layer.q = normal({heads, rq, nope});
  layer.q_rope = normal({heads, rq, rope});
  layer.k = normal({heads, rkv, nope});
  layer.v = normal({heads, rkv, value});
  layer.o = normal({heads, value, d});
  layer.input = {Norm::Kind::rms, normal({d}), {}, 1e-6};
  layer.q_latent = {Norm::Kind::rms, normal({rq}), {}, 1e-6};
  layer.kv_latent = {Norm::Kind::rms, normal({rkv}), {}, 1e-6};
  layer.rotary = {Rotary::Layout::interleaved, rope, 0, {0.7}, 1};
  LayerChange change;
  const at::Tensor qb = normal({1, rq, r}), kva = normal({1, d, r}), kvb = normal({1, rkv, r});
  change.qa = {normal({1, d, r}), normal({1, r, rq}), {}, {}};
  change.q = {qb, normal({heads, r, nope}), {}, {}};
  change.q_rope = {qb, normal({heads, r, rope}), {}, {}};
  change.kva = {kva, normal({1, r, rkv}), {}, {}};
  change.kpe = {kva, normal({1, r, rope}), {}, {}};
  change.k = {kvb, normal({heads, r, nope}), {}, {}};
  change.v = {kvb, normal({heads, r, value}), {}, {}};
  const Wiring found = wiring_of(layer, change);

  AttentionLayer merged = layer;
  auto add = [](at::Tensor& w, const MatrixChange& one) {
    const at::Tensor product = matmul(one.a, one.b);
    w = w + (w.dim() == 2 ? product[0] : product);
  };
  add(merged.qa, change.qa);
  add(merged.q, change.q);
  add(merged.q_rope, change.q_rope);
  add(merged.kva, change.kva);
  add(merged.kpe, change.kpe);
  add(merged.k, change.k);
  add(merged.v, change.v);
  merged = fold_norms(merged);
  const at::Tensor q = at::cat({matmul(merged.qa, merged.q), matmul(merged.qa, merged.q_rope)}, 2);
  const at::Tensor k =
      at::cat({matmul(merged.kva, merged.k), merged.kpe.unsqueeze(0).expand({heads, -1, -1})}, 2);
  const at::Tensor v = matmul(merged.kva, merged.v);
  EXPECT_TRUE(norm_of(found.q.w + matmul(found.q.a, found.q.b) - q) <= 1e-12 * norm_of(q));
  EXPECT_TRUE(norm_of(found.k.w + matmul(found.k.a, found.k.b) - k) <= 1e-12 * norm_of(k));
  EXPECT_TRUE(norm_of(found.v.w + matmul(found.v.a, found.v.b) - v) <= 1e-12 * norm_of(v));
  EXPECT_EQ(found.rotary.begin, nope);
  // The A that the two parts of a head share is one: rank r of the latent and r of the heads.
  EXPECT_EQ(found.q.rank(), 2 * r);
  EXPECT_EQ(found.k.rank(), 2 * r);
  EXPECT_EQ(found.approx, std::set<std::string>{"mla_rms"});
}

TEST(Wiring, ChangesOfFullRankAreRefused) {
  RandomLayer dora(0, 9, 2, 2, 3, 3);
  dora.change.v.gain = normal({2, 3});
  RandomLayer whole(0, 9, 2, 2, 3, 3);
  whole.change.o.full = normal({2, 3, 9});
  RandomLayer norms(0, 9, 2, 2, 3, 3);
  norms.change.input = Norm{Norm::Kind::rms, normal({9}), {}, 1e-6};
  RandomLayer latent(0, 9, 2, 2, 3, 3);
  latent.layer.ob = normal({1, 9, 9});
  for (const RandomLayer* one : {&dora, &whole, &norms, &latent}) {
    try {
      wiring_of(one->layer, one->change);
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::Unsupported);
      EXPECT_NE(std::string(error.what()).find("layer 0"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace subspace
