#include "lora/circuit_metrics.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "attention/fused.h"
#include "lora/close.h"
#include "lora/heads_result.h"
#include "lora/heads_run.h"
#include "lora/random_layer.h"

namespace subspace {
namespace {

using testing::expect_close;
using testing::normal;

/// Of the one head that there is.
at::Tensor one_head(const std::vector<std::vector<double>>& rows) {
  return testing::matrix(rows).unsqueeze(0);
}

/// The specification's first example: d = 3, one head of width 2, adapters on q and k.
AttentionLayer example_layer() {
  AttentionLayer layer;
  layer.q = one_head({{1, 0}, {0, 1}, {0, 0}});
  layer.k = one_head({{1, 0}, {0, 2}, {0, 0}});
  layer.v = one_head({{1}, {0}, {0}});
  layer.o = one_head({{0, 2, 0}});
  return layer;
}

LayerChange example_change() {
  LayerChange change;
  change.q = {one_head({{0}, {0}, {1}}), one_head({{1, 0}}), {}, {}};
  change.k = {one_head({{0}, {0}, {1}}), one_head({{1, 1}}), {}, {}};
  change.v = {one_head({{0}, {1}, {0}}), one_head({{3}}), {}, {}};
  change.o = {one_head({{1}}), one_head({{0, 0, 1}}), {}, {}};
  return change;
}

Json entry(const AttentionLayer& layer, const LayerChange& change, const std::string& circuit,
           const HeadsOptions& options = {}) {
  for (const Json& head : heads_json(layer_heads(layer, change, options))) {
    if (head.at("circuit") == circuit && head.at("head") == 0) return head;
  }
  return {};
}

TEST(CircuitMetrics, PatternsOfTheFirstExampleByHand) {
  const Json head = entry(example_layer(), example_change(), "QK");
  EXPECT_NEAR(head.at("rel_fro").get<double>(), 2 / std::sqrt(5.0), 1e-12);
  EXPECT_NEAR(head.at("terms").at("q").at("share").get<double>(), 0.25, 1e-12);
  EXPECT_NEAR(head.at("terms").at("k").at("share").get<double>(), 0.5, 1e-12);
  EXPECT_NEAR(head.at("terms").at("qk").at("share").get<double>(), 0.25, 1e-12);
  EXPECT_NEAR(head.at("split").at("new_read").get<double>(), 0.25, 1e-12);
  EXPECT_NEAR(head.at("split").at("new_write").get<double>(), 0.5, 1e-12);
  EXPECT_NEAR(head.at("split").at("new_new").get<double>(), 0.25, 1e-12);
  EXPECT_NEAR(head.at("split").at("in_in").get<double>(), 0, 1e-12);
  EXPECT_NEAR(head.at("cos").get<double>(), std::sqrt(5.0) / 3, 1e-12);
  EXPECT_NEAR(head.at("gain").get<double>(), 0, 1e-12);
  EXPECT_EQ(head.at("rank_num"), 2);
  EXPECT_EQ(head.at("rank_bound"), 2);
  EXPECT_NEAR(head.at("singular").at("base")[0].get<double>(), 2, 1e-12);
  EXPECT_NEAR(head.at("singular").at("base")[1].get<double>(), 1, 1e-12);
  EXPECT_NEAR(head.at("singular").at("adapted")[0].get<double>(), std::sqrt(6.0), 1e-12);
  EXPECT_NEAR(head.at("singular").at("adapted")[1].get<double>(), std::sqrt(3.0), 1e-12);
}

TEST(CircuitMetrics, TheCrossTermIsOfSecondOrder) {
  LayerChange twice = example_change();
  twice.q.b = twice.q.b * 2;
  twice.k.b = twice.k.b * 2;
  const Json head = entry(example_layer(), twice, "QK");
  EXPECT_NEAR(head.at("terms").at("qk").at("fro").get<double>(), 4, 1e-12);
  EXPECT_NEAR(head.at("terms").at("q").at("fro").get<double>(), 2, 1e-12);
}

TEST(CircuitMetrics, MessagesOfTheSecondExampleByHand) {
  const Json head = entry(example_layer(), example_change(), "VO");
  EXPECT_NEAR(head.at("fro")[2].get<double>(), std::sqrt(46.0), 1e-12);
  EXPECT_NEAR(head.at("terms").at("v").at("share").get<double>(), 36.0 / 46, 1e-12);
  EXPECT_NEAR(head.at("terms").at("o").at("share").get<double>(), 1.0 / 46, 1e-12);
  EXPECT_NEAR(head.at("terms").at("vo").at("share").get<double>(), 9.0 / 46, 1e-12);
  // The change outranks the circuit: a head of width 1 has rank 1 before and after.
  EXPECT_EQ(head.at("rank_num"), 2);
  EXPECT_EQ(head.at("erank999")[1], 1);
}

TEST(CircuitMetrics, RotationOfTheThirdExampleByHand) {
  AttentionLayer layer;
  layer.q = one_head({{1, 0}, {0, 1}});
  layer.k = one_head({{1, 0}, {0, 1}});
  layer.v = one_head({{1}, {0}});
  layer.o = one_head({{1, 0}});
  layer.rotary = {Rotary::Layout::half, 2, 0, {std::acos(0.0)}, 1};
  LayerChange change;
  change.q = {one_head({{1}, {0}}), one_head({{0, 1}}), {}, {}};
  const Circuit circuit = circuits(layer, change)[0];
  const auto q_term = [&](double delta) {
    const Circuit turned = at_offset(circuit, delta);
    return term_factors(turned, terms_of(turned)[1]).dense();
  };
  expect_close(q_term(0), one_head({{0, 1}, {0, 0}}));
  expect_close(q_term(1), one_head({{-1, 0}, {0, 0}}));
  expect_close(q_term(2), one_head({{0, -1}, {0, 0}}));
  HeadsOptions options;
  options.window = {0, 1, 2};
  options.curve = {0, 1};
  const Json head = entry(layer, change, "QK", options);
  EXPECT_NEAR(head.at("rel_fro").get<double>(), std::sqrt(0.5), 1e-12);
  EXPECT_NEAR(head.at("rel_fro_at").at("1").get<double>(), std::sqrt(0.5), 1e-12);
  // Against the identity the term is -1 in one place at offset 1, and orthogonal at 0 and 2.
  EXPECT_NEAR(head.at("gain").get<double>(), 0, 1e-12);
}

TEST(CircuitMetrics, CompositionOfTheFourthExampleByHand) {
  // Writer e1 e2^T; reader W_Q = e3, W_K = e1 with A_q = e2, B_q = 1.
  const LowRank writer = {one_head({{1}, {0}, {0}}), one_head({{0}, {1}, {0}})};
  AttentionLayer layer;
  layer.q = one_head({{0}, {0}, {1}});
  layer.k = one_head({{1}, {0}, {0}});
  layer.v = layer.k;
  layer.o = one_head({{1, 0, 0}});
  LayerChange change;
  change.q = {one_head({{0}, {1}, {0}}), one_head({{1}}), {}, {}};
  const Circuit reader = circuits(layer, change)[0];
  const auto norm = [](const LowRank& x) { return std::sqrt(inner(x, x).item<double>()); };
  const auto score = [&](const LowRank& read) {
    return norm(product(writer, read)) / (norm(writer) * norm(read));
  };
  EXPECT_NEAR(score(circuit_factors(reader, false)), 0, 1e-15);
  EXPECT_NEAR(score(circuit_factors(reader, true)), std::sqrt(0.5), 1e-15);
  const LowRank delta = delta_factors(reader);
  EXPECT_NEAR(norm(product(writer, delta)) / (norm(writer) * norm(circuit_factors(reader, false))),
              1, 1e-15);
  EXPECT_NEAR(3 * score(delta) * score(delta), 3, 1e-14);
}

TEST(CircuitMetrics, AnUnchangedHeadHasNoShares) {
  const Json head = entry(example_layer(), {}, "VO");
  EXPECT_EQ(head.at("rel_fro"), 0.0);
  EXPECT_TRUE(head.at("split").at("in_in").is_null());
  EXPECT_TRUE(head.at("terms").empty());
  EXPECT_EQ(head.at("rank_num"), 0);
  EXPECT_EQ(head.at("cos"), 1.0);
}

TEST(CircuitMetrics, ARankDeficientBaseHasTheSpanOfItsRank) {
  AttentionLayer layer;
  layer.v = normal({1, 12, 4});
  layer.v.select(2, 3).copy_(layer.v.select(2, 0));
  layer.o = normal({1, 4, 12});
  layer.q = at::zeros({1, 12, 0}, at::kDouble);
  LayerChange change;
  change.v = {normal({1, 12, 2}), normal({1, 2, 4}), {}, {}};
  const Circuit circuit = circuits(layer, change)[0];
  const CircuitMetrics found = circuit_metrics(circuit, {});
  const at::Tensor m = at::bmm(layer.v, layer.o)[0];
  const at::Tensor delta = delta_factors(circuit).dense()[0];
  const auto [u, s, vh] = at::linalg_svd(m, false);
  const at::Tensor left = u.narrow(1, 0, 3), right = vh.narrow(0, 0, 3);
  const at::Tensor kept = at::matmul(left, at::matmul(left.t(), delta));
  const at::Tensor both = at::matmul(at::matmul(kept, right.t()), right);
  EXPECT_NEAR(found.split[0][0].item<double>(), both.square().sum().item<double>(), 1e-10);
  EXPECT_NEAR(found.split[0][2].item<double>(), (kept - both).square().sum().item<double>(), 1e-10);
}

TEST(CircuitMetrics, ASecondMomentWeighsWhatIsRead) {
  AttentionLayer layer = example_layer();
  layer.q = normal({2, 9, 4});
  layer.k = normal({1, 9, 4});
  layer.v = normal({1, 9, 3});
  layer.o = normal({2, 3, 9});
  LayerChange change;
  change.q = {normal({1, 9, 2}), normal({2, 2, 4}), {}, {}};
  const at::Tensor x = normal({40, 9});
  MetricOptions options;
  options.weight = at::linalg_cholesky(at::matmul(x.t(), x) / 40).t();
  for (const Circuit& circuit : circuits(layer, change)) {
    const CircuitMetrics found = circuit_metrics(circuit, options);
    const bool qk = circuit.kind == Circuit::Kind::qk;
    for (const bool adapted : {false, true}) {
      at::Tensor m = at::matmul(x, circuit_factors(circuit, adapted).dense());
      if (qk) m = at::matmul(m, x.t()) / std::sqrt(40.0);
      expect_close(found.fro.select(1, adapted ? 1 : 0), m.norm(2, {1, 2}) / std::sqrt(40.0));
    }
  }
}

/// Several changes on a side, some of which share the base's columns, planes beside one another and
/// coordinates that nothing turns.
TEST(CircuitMetrics, SizesAtEachOffsetAndTheirMeanAreThoseOfDenseMatrices) {
  testing::RandomLayer given(0, 30, 4, 2, 8, 6);
  given.layer.rotary = {Rotary::Layout::interleaved, 6, 1, {1, 0.3, 0.07}, 1.1};
  given.change.q.gain = 1 + 0.3 * normal({4, 8});
  given.change.k.gain = 1 + 0.3 * normal({2, 8});
  given.change.k.full = 0.1 * normal({2, 30, 8});
  given.change.o.gain = 1 + 0.3 * normal({4, 30});
  MetricOptions options;
  options.window = options.curve = {0, 1, 7, 20};
  for (const Circuit& circuit : circuits(given.layer, given.change)) {
    const CircuitMetrics found = circuit_metrics(circuit, options);
    at::Tensor squares = at::zeros({4, 3}, at::kDouble);
    for (std::int64_t j = 0; j < 4; ++j) {
      const Circuit turned =
          at_offset(circuit, static_cast<double>(options.curve[static_cast<std::size_t>(j)]));
      const at::Tensor base = circuit_factors(turned, false).dense(),
                       adapted = circuit_factors(turned, true).dense();
      const auto square = [](const at::Tensor& m) { return m.square().sum({1, 2}); };
      squares = squares + at::stack({square(base), square(adapted), square(adapted - base)}, 1) / 4;
      if (!found.curve.defined()) continue;
      expect_close(found.curve.select(1, j), at::stack({square(base), square(adapted - base)}, 1));
    }
    EXPECT_EQ(found.curve.defined(), found.rotary);
    expect_close(found.fro, squares.sqrt());
    expect_close(found.split.sum(1), squares.select(1, 2));
    expect_close(found.gram.sum({1, 2}), squares.select(1, 1));
  }
}

}  // namespace
}  // namespace subspace
