#include "lora/terms.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "base/error.h"
#include "lora/close.h"

namespace subspace {
namespace {

using testing::expect_close;
using testing::matrix;
using testing::normal;

/// One head a layer, as the specification's hand-checkable examples have it.
struct Example {
  AttentionLayer layer;
  LayerChange change;
};

Example example_one() {
  Example e;
  e.layer.q = matrix({{1, 0}, {0, 1}, {0, 0}}).unsqueeze(0);
  e.layer.k = matrix({{1, 0}, {0, 2}, {0, 0}}).unsqueeze(0);
  e.layer.v = at::ones({1, 3, 1}, at::kDouble);
  e.layer.o = at::ones({1, 1, 3}, at::kDouble);
  const at::Tensor e3 = matrix({{0}, {0}, {1}}).unsqueeze(0);
  e.change.q = {e3, matrix({{1, 0}}).unsqueeze(0), {}, {}};
  e.change.k = {e3, matrix({{1, 1}}).unsqueeze(0), {}, {}};
  return e;
}

Circuit circuit_of(const Example& e, Circuit::Kind kind) {
  for (const Circuit& circuit : circuits(e.layer, e.change)) {
    if (circuit.kind == kind) return circuit;
  }
  throw std::runtime_error("no such circuit");
}

TEST(Terms, PatternsOfTheFirstExampleByHand) {
  const Circuit circuit = circuit_of(example_one(), Circuit::Kind::qk);
  const std::vector<Term> terms = terms_of(circuit);
  ASSERT_EQ(terms.size(), 4u);
  const std::vector<std::pair<std::string, at::Tensor>> expected = {
      {"base", matrix({{1, 0, 0}, {0, 2, 0}, {0, 0, 0}})},
      {"q", matrix({{0, 0, 0}, {0, 0, 0}, {1, 0, 0}})},
      // (W_Q B_k^T) A_k^T = (e1 + e2) e3^T
      {"k", matrix({{0, 0, 1}, {0, 0, 1}, {0, 0, 0}})},
      {"qk", matrix({{0, 0, 0}, {0, 0, 0}, {0, 0, 1}})}};
  for (std::size_t t = 0; t < terms.size(); ++t) {
    EXPECT_EQ(terms[t].name, expected[t].first);
    expect_close(term_factors(circuit, terms[t]).dense()[0], expected[t].second);
  }
  expect_close(circuit_factors(circuit, true).dense()[0],
               matrix({{1, 0, 1}, {0, 2, 1}, {1, 0, 1}}));
  EXPECT_EQ(delta_factors(circuit).width(), 2);
}

TEST(Terms, MessagesOfTheSecondExampleByHand) {
  Example e = example_one();
  e.layer.v = matrix({{1}, {0}, {0}}).unsqueeze(0);
  e.layer.o = matrix({{0, 2, 0}}).unsqueeze(0);
  e.change.v = {matrix({{0}, {1}, {0}}).unsqueeze(0), matrix({{3}}).unsqueeze(0), {}, {}};
  e.change.o = {matrix({{1}}).unsqueeze(0), matrix({{0, 0, 1}}).unsqueeze(0), {}, {}};
  const Circuit circuit = circuit_of(e, Circuit::Kind::vo);
  expect_close(circuit_factors(circuit, true).dense()[0],
               matrix({{0, 2, 1}, {0, 6, 3}, {0, 0, 0}}));
  const LowRank delta = delta_factors(circuit);
  expect_close(delta.dense()[0], matrix({{0, 0, 1}, {0, 6, 3}, {0, 0, 0}}));
  EXPECT_NEAR(inner(delta, delta).item<double>(), 46, 1e-12);
  double energies = 0;
  for (const Term& term : terms_of(circuit)) {
    const LowRank factors = term_factors(circuit, term);
    const double energy = inner(factors, factors).item<double>();
    const std::map<std::string, double> expected = {{"v", 36}, {"o", 1}, {"vo", 9}, {"base", 4}};
    EXPECT_NEAR(energy, expected.at(term.name), 1e-12) << term.name;
    energies += energy;
  }
  EXPECT_NEAR(energies, 4 + 46, 1e-12);
}

TEST(Terms, AChangeThatDoesNotFitSaysWhere) {
  Example e = example_one();
  e.layer.index = 7;
  e.change.q.b = at::ones({1, 1, 3}, at::kDouble);
  try {
    circuits(e.layer, e.change);
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidShape);
    EXPECT_NE(std::string(error.what()).find("layer 7: B of the change of q has shape [1, 1, 3]"),
              std::string::npos)
        << error.what();
  }
  e.change.q.b = at::full({1, 1, 2}, std::nan(""), at::kDouble);
  EXPECT_THROW(circuits(e.layer, e.change), Error);
}

TEST(LowRank, ProductsSumsAndInnerProductsAreThoseOfTheMatrices) {
  const LowRank a = {normal({3, 11, 2}), normal({3, 9, 2})};
  const LowRank b = {normal({1, 9, 4}), normal({1, 7, 4})};
  const LowRank c = {normal({1, 11, 3}), normal({3, 9, 3})};
  expect_close(product(a, b).dense(), at::matmul(a.dense(), b.dense()));
  EXPECT_EQ(product(a, b).width(), 2);
  expect_close(product(b.transposed(), a.transposed()).dense(),
               at::matmul(b.dense().mT(), a.dense().mT()));
  expect_close(sum({a, c}).dense(), a.dense() + c.dense());
  expect_close(inner(a, c), (a.dense() * c.dense()).sum({1, 2}));
  expect_close(singular_values(a), at::linalg_svdvals(a.dense()).narrow(1, 0, 2));
  const Triples triples = singular_triples(a, 2);
  expect_close(at::matmul(triples.left * triples.values.unsqueeze(1), triples.right.mT()),
               a.dense());
  EXPECT_THROW(sum({a, b}), Error);
  EXPECT_THROW(sum({}), Error);
}

TEST(LowRank, TriangularFactorsByReflectionsAndByCholeskyAreOne) {
  const at::Tensor x = normal({4, 50, 6});
  const at::Tensor r = triangular(x), s = triangular_by_cholesky(x);
  expect_close(at::matmul(r.mT(), r), at::matmul(x.mT(), x));
  expect_close(s.abs(), r.abs());
  at::Tensor near = x.clone();
  near.select(2, 5).copy_(near.select(2, 0) * (1 + 1e-12));
  EXPECT_FALSE(triangular_by_cholesky(near).defined());
}

TEST(LowRank, SharedMatricesMultiplyTheirHeads) {
  const at::Tensor few = normal({2, 5, 3}), many = normal({6, 3, 4});
  expect_close(heads_product(few, many), at::bmm(for_heads(few, 6), many));
  expect_close(heads_product(many.mT(), few.mT()), at::bmm(many.mT(), for_heads(few, 6).mT()));
  expect_close(heads_product(few.narrow(0, 0, 1), many), at::matmul(few[0], many));
}

}  // namespace
}  // namespace subspace
