// The walks over generated experts: forward, backward over tokens, backward over experts.
#include "kernels/ethos_experts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "kernels/expert_grad.h"
#include "kernels/experts_bound.h"
#include "kernels/on_backend.h"

namespace subspace::kernels {
namespace {

struct Case {
  Element element;
  Routed r;
  Doubles xp;
  Doubles table;
  Doubles grad;
};

/// How selections are spread over the experts.
enum class Spread { uniform, skewed, one };

Case make_case(Element element, std::int64_t tokens, std::int64_t selections, std::int64_t experts,
               std::int64_t width, Spread spread = Spread::uniform, std::uint64_t seed = 1) {
  Case c{element, {tokens, selections, experts, width, {}, {}}, {}, {}, {}};
  const double scale = 1 / std::sqrt(static_cast<double>(width));
  c.xp = normals(element, tokens * width, 1.5, 10 * seed);
  c.table = normals(element, experts * width, scale, 10 * seed + 1);
  c.grad = normals(element, tokens * width, 1, 10 * seed + 2);
  c.r.scores = normals(Element::f32, tokens * selections, 0.3, 10 * seed + 3);
  Random random(seed, 5);
  for (std::int64_t m = 0; m < tokens * selections; ++m) {
    double place = spread == Spread::one ? 0.5 : random.uniform();
    if (spread == Spread::skewed) place = std::pow(place, 12);
    c.r.index.push_back(static_cast<std::int64_t>(place * static_cast<double>(experts)));
  }
  return c;
}

struct Result {
  ExpertsForward forward;
  ExpertsBackward backward;
};

Doubles widened(const std::vector<float>& values) { return {values.begin(), values.end()}; }

struct How {
  const EthosWalk* walk = nullptr;
  std::int64_t columns = 0;
  const Doubles* pre = nullptr;
  bool split = false;  // lets few tokens be walked in parts
};

void run_walks(Backend backend, const EthosExperts& forward, const EthosExpertsGrad& back,
               const ExpertGrad& sums, const How& how) {
#ifdef SUBSPACE_CUDA
  if (backend == Backend::cuda) {
    ethos_experts_cuda(forward, nullptr, how.walk);
    ethos_experts_grad_cuda(back, nullptr, how.walk);
    expert_lists_cuda(sums.lists, nullptr);
    expert_grad_cuda(sums, nullptr, how.columns);
    return;
  }
#endif
  (void)how;
  for (const int threads : {2}) {
    ethos_experts_cpu(forward, threads, isa_of(backend));
    ethos_experts_grad_cpu(back, threads, isa_of(backend));
    expert_lists_cpu(sums.lists);
    expert_grad_cpu(sums, threads, isa_of(backend));
  }
}

/// Everything, forward and backward, on one backend.
Result run(Backend backend, const Case& c, const How& how = {}) {
  const Routed& r = c.r;
  const std::int64_t bytes = element_bytes(c.element);
  const std::int64_t count = r.tokens * r.selections;
  using Bytes = Buffer<std::uint8_t>;
  Bytes xp(backend, encode(c.element, c.xp));
  Bytes table(backend, encode(c.element, c.table));
  Bytes grad(backend, encode(c.element, c.grad));
  Bytes pre(backend, encode(c.element, how.pre == nullptr ? Doubles{} : *how.pre));
  Buffer<float> scores(backend, floats(r.scores));
  Buffer<std::int64_t> index(backend, r.index);
  Bytes acc(backend, r.tokens * r.width * bytes);
  Bytes grad_xp(backend, r.tokens * r.width * bytes);
  Bytes grad_table(backend, r.experts * r.width * bytes);
  Buffer<float> p(backend, count);
  Buffer<float> grad_scores(backend, count);
  Buffer<RowWeights> weights(backend, count);
  Buffer<std::uint32_t> expert(backend, count);
  Buffer<std::uint32_t> selection(backend, count);
  Buffer<std::uint32_t> offsets(backend, r.experts + 1);
  Bytes workspace(backend, expert_lists_workspace(count));
  Buffer<float> partial(backend, expert_grad_workspace(count, r.width, false) / 4);

  Buffer<float> parts(backend, r.tokens * walk_split(r.tokens, r.selections).parts * r.width);
  const EthosExperts forward{.xp = xp.data(),
                             .scores = scores.data(),
                             .index = index.data(),
                             .table = table.data(),
                             .acc = acc.data(),
                             .p = p.data(),
                             .partial = how.split ? parts.data() : nullptr,
                             .tokens = r.tokens,
                             .selections = r.selections,
                             .experts = r.experts,
                             .width = r.width,
                             .element = c.element};
  const EthosExpertsGrad back{.grad = grad.data(),
                              .scores = scores.data(),
                              .index = index.data(),
                              .table = table.data(),
                              .p = p.data(),
                              .grad_scores = grad_scores.data(),
                              .weights = weights.data(),
                              .grad_xp = grad_xp.data(),
                              .tokens = r.tokens,
                              .selections = r.selections,
                              .experts = r.experts,
                              .width = r.width,
                              .element = c.element};
  const ExpertGrad sums{.grad = grad.data(),
                        .vectors = xp.data(),
                        .weights = weights.data(),
                        .lists = {.index = index.data(),
                                  .count = count,
                                  .experts = r.experts,
                                  .expert = expert.data(),
                                  .selection = selection.data(),
                                  .offsets = offsets.data(),
                                  .workspace = workspace.data()},
                        .output = grad_table.data(),
                        .input = nullptr,
                        .pre = how.pre == nullptr ? nullptr : pre.data(),
                        .partial = partial.data(),
                        .tokens = r.tokens,
                        .selections = r.selections,
                        .width = r.width,
                        .element = c.element};
  run_walks(backend, forward, back, sums, how);
  Result out{{decode(c.element, acc.values()), widened(p.values())},
             {widened(grad_scores.values()),
              {},
              {},
              decode(c.element, grad_xp.values()),
              decode(c.element, grad_table.values()),
              {}}};
  for (const RowWeights& pair : weights.values()) {
    out.backward.output.push_back(pair.output);
    out.backward.input.push_back(pair.input);
  }
  return out;
}

void expect_reference(const Case& c, const Result& got) {
  const ExpertsForward forward = ethos_experts_reference(c.r, c.xp, c.table);
  const ExpertsBackward back = ethos_experts_grad_reference(c.r, c.xp, c.table, c.grad);
  const ExpertsBound bound = ethos_experts_bound(c.r, c.xp, c.table, c.grad, c.element);
  expect_within(got.forward.p, forward.p, bound.forward.p, "p");
  expect_within(got.forward.acc, forward.acc, bound.forward.acc, "acc");
  expect_within(got.backward.scores, back.scores, bound.backward.scores, "grad_scores");
  expect_within(got.backward.output, back.output, bound.backward.output, "weights.output");
  expect_within(got.backward.input, back.input, bound.backward.input, "weights.input");
  expect_within(got.backward.vectors, back.vectors, bound.backward.vectors, "grad_xp");
  expect_within(got.backward.table, back.table, bound.backward.table, "grad_table");
}

class EthosExpertsOn : public ::testing::TestWithParam<std::tuple<Backend, Element>> {
 protected:
  void SetUp() override {
    if (const std::string why = missing_for(backend()); !why.empty()) GTEST_SKIP() << why;
  }
  Backend backend() const { return std::get<0>(GetParam()); }
  Element element() const { return std::get<1>(GetParam()); }
};

TEST_P(EthosExpertsOn, AgreesWithTheReferenceForAllWidths) {
  std::uint64_t seed = 0;
  for (const std::int64_t width : {32, 64, 96, 128, 256, 288, 512, 544, 768, 1024}) {
    const Case c = make_case(element(), 13, 24, 101, width, Spread::uniform, ++seed);
    SCOPED_TRACE(width);
    expect_reference(c, run(backend(), c));
  }
}

TEST_P(EthosExpertsOn, AgreesWithTheReferenceForOddCounts) {
  struct Shape {
    std::int64_t tokens, selections, experts;
  };
  for (const Shape& s : {Shape{1, 1, 1}, Shape{3, 1, 7}, Shape{5, 7, 3}, Shape{33, 128, 1000},
                         Shape{2, 600, 257}, Shape{7, 1024, 50}, Shape{6, 1, 4000}}) {
    const Case c = make_case(element(), s.tokens, s.selections, s.experts, 64, Spread::uniform, 3);
    SCOPED_TRACE(::testing::Message() << s.tokens << " " << s.selections << " " << s.experts);
    expect_reference(c, run(backend(), c));
  }
}

TEST_P(EthosExpertsOn, AgreesWithTheReferenceForEveryWalk) {
  // The variants that a launch chooses between, forced; without a GPU they are one.
  const Case c = make_case(element(), 21, 128, 300, 512, Spread::uniform, 4);
  const std::int64_t least = 256 / element_bytes(element());
  for (const EthosWalk& walk : {EthosWalk{8, 4, true}, EthosWalk{4, 5, false},
                                EthosWalk{4, 6, true}, EthosWalk{2, 8, true}}) {
    for (const std::int64_t columns : {least, 2 * least, 4 * least}) {
      SCOPED_TRACE(::testing::Message() << walk.rows << " " << walk.blocks << " " << columns);
      expect_reference(c, run(backend(), c, {.walk = &walk, .columns = columns}));
      if (backend() != Backend::cuda) return;
    }
  }
}

TEST_P(EthosExpertsOn, FewTokensInPartsAgreeWithTheReference) {
  struct Shape {
    std::int64_t tokens, selections, width;
  };
  for (const Shape& s : {Shape{1, 128, 512}, Shape{8, 128, 512}, Shape{64, 128, 64},
                         Shape{3, 9, 96}, Shape{1, 1100, 256}, Shape{5, 61, 1024}}) {
    ASSERT_GT(walk_split(s.tokens, s.selections).parts, 1);
    Case c = make_case(element(), s.tokens, s.selections, 300, s.width, Spread::uniform, 21);
    SCOPED_TRACE(::testing::Message() << s.tokens << " " << s.selections << " " << s.width);
    expect_reference(c, run(backend(), c, {.split = true}));
    c.r.index.back() = 300;
    const Result got = run(backend(), c, {.split = true});
    for (std::int64_t i = 0; i < s.tokens * s.width; ++i) {
      ASSERT_EQ(std::isnan(got.forward.acc[static_cast<std::size_t>(i)]),
                i / s.width == s.tokens - 1);
    }
  }
}

TEST(WalkSplit, HasEverySelectionInOnePart) {
  for (const std::int64_t tokens : {0, 1, 2, 7, 64, 100, 511, 512, 513, 1024, 40000}) {
    for (const std::int64_t selections : {0, 1, 8, 9, 16, 61, 128, 4096, 100000}) {
      const WalkSplit split = walk_split(tokens, selections);
      SCOPED_TRACE(::testing::Message() << tokens << " " << selections << ": " << split.parts);
      EXPECT_GE(split.parts * split.each, selections);
      EXPECT_LT((split.parts - 1) * split.each, std::max<std::int64_t>(selections, 1));
      EXPECT_LE(split.parts, 64);
      if (split.parts > 1) {
        EXPECT_EQ(split.each % 8, 0);
        EXPECT_LE(tokens * split.parts, 1024);
      }
    }
  }
  EXPECT_EQ(walk_split(1, 128).parts, 16);
  EXPECT_EQ(walk_split(32768, 128).parts, 1);
}

TEST_P(EthosExpertsOn, SkewedRoutingGoesThroughPieces) {
  // Most selections are of a few experts, or all of one: lists much longer than a piece, some of
  // which end inside one.
  for (const Spread spread : {Spread::skewed, Spread::one}) {
    const Case c = make_case(element(), 64, 100, 40, 160, spread, 6);
    expect_reference(c, run(backend(), c));
  }
}

TEST_P(EthosExpertsOn, GradientOfWhatTheGeluSaw) {
  const Case c = make_case(element(), 40, 32, 60, 96, Spread::skewed, 8);
  const Doubles pre = normals(element(), c.r.experts * c.r.width, 1.5, 99);
  const Result got = run(backend(), c, {.pre = &pre});
  Doubles want = ethos_experts_grad_reference(c.r, c.xp, c.table, c.grad).table;
  Doubles bound = ethos_experts_bound(c.r, c.xp, c.table, c.grad, element()).backward.table;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double slope = gelu_exact(pre[i]).slope;
    bound[i] = bound[i] * (std::abs(slope) + 2 * kGeluError) +
               std::abs(want[i]) * (2 * kGeluError + std::ldexp(2, -24));
    want[i] *= slope;
  }
  expect_within(got.backward.table, want, bound, "grad_pre");
}

TEST_P(EthosExpertsOn, OrderOfSelectionsDoesNotMatter) {
  const Case c = make_case(element(), 9, 30, 50, 64, Spread::uniform, 9);
  Case turned = c;
  for (std::int64_t t = 0; t < c.r.tokens; ++t) {
    const auto from = t * c.r.selections;
    std::reverse(turned.r.index.begin() + from, turned.r.index.begin() + from + c.r.selections);
    std::reverse(turned.r.scores.begin() + from, turned.r.scores.begin() + from + c.r.selections);
  }
  const Result a = run(backend(), c);
  const Result b = run(backend(), turned);
  ExpertsBound bound = ethos_experts_bound(c.r, c.xp, c.table, c.grad, element());
  for (Doubles* values : {&bound.forward.acc, &bound.backward.vectors, &bound.backward.table}) {
    for (double& value : *values) value *= 2;
  }
  expect_within(a.forward.acc, b.forward.acc, bound.forward.acc, "acc");
  expect_within(a.backward.vectors, b.backward.vectors, bound.backward.vectors, "grad_xp");
  expect_within(a.backward.table, b.backward.table, bound.backward.table, "grad_table");
}

TEST_P(EthosExpertsOn, ADuplicatedExpertAddsUp) {
  // One expert chosen twice is that expert with the sum of both scores.
  Case once = make_case(element(), 7, 1, 5, 64, Spread::uniform, 11);
  Case twice = once;
  twice.r.selections = 2;
  twice.r.index.clear();
  twice.r.scores.clear();
  for (std::size_t t = 0; t < 7; ++t) {
    const double score = static_cast<float>(once.r.scores[t]);
    twice.r.index.insert(twice.r.index.end(), 2, once.r.index[t]);
    twice.r.scores.push_back(score);
    twice.r.scores.push_back(0.5 * score);
    once.r.scores[t] = 1.5 * score;
  }
  const Result a = run(backend(), once);
  const Result b = run(backend(), twice);
  ExpertsBound bound = ethos_experts_bound(once.r, once.xp, once.table, once.grad, element());
  for (Doubles* values : {&bound.forward.acc, &bound.backward.vectors, &bound.backward.table}) {
    for (double& value : *values) value *= 2;
  }
  expect_within(b.forward.acc, a.forward.acc, bound.forward.acc, "acc");
  expect_within(b.backward.vectors, a.backward.vectors, bound.backward.vectors, "grad_xp");
  expect_within(b.backward.table, a.backward.table, bound.backward.table, "grad_table");
}

TEST_P(EthosExpertsOn, ZeroWeightsGiveZero) {
  Case c = make_case(element(), 5, 12, 20, 96, Spread::uniform, 12);
  std::fill(c.r.scores.begin(), c.r.scores.end(), 0.0);
  const Result got = run(backend(), c);
  for (const double value : got.forward.acc) ASSERT_EQ(value, 0);
  for (const double value : got.backward.vectors) ASSERT_EQ(value, 0);
  for (const double value : got.backward.table) ASSERT_EQ(value, 0);
}

TEST_P(EthosExpertsOn, NoTokensAndNoSelections) {
  const Case none = make_case(element(), 0, 8, 6, 64);
  for (const double value : run(backend(), none).backward.table) ASSERT_EQ(value, 0);
  const Case unrouted = make_case(element(), 3, 0, 6, 64);
  for (const double value : run(backend(), unrouted).forward.acc) ASSERT_EQ(value, 0);
}

TEST_P(EthosExpertsOn, NanStaysWithItsToken) {
  Case c = make_case(element(), 6, 10, 30, 64, Spread::uniform, 13);
  c.r.scores[2 * 10 + 3] = std::numeric_limits<double>::quiet_NaN();
  const Result got = run(backend(), c);
  for (std::int64_t t = 0; t < 6; ++t) {
    for (std::int64_t i = 0; i < 64; ++i) {
      const double value = got.forward.acc[static_cast<std::size_t>(t * 64 + i)];
      ASSERT_EQ(std::isnan(value), t == 2) << t << " " << i;
    }
  }
}

TEST_P(EthosExpertsOn, AnIndexOutOfRangeReadsNothingAndShows) {
  for (const std::int64_t wrong : {std::int64_t{-1}, std::int64_t{30}, std::int64_t{1} << 40}) {
    Case c = make_case(element(), 6, 10, 30, 64, Spread::uniform, 14);
    c.r.index[4 * 10 + 9] = wrong;
    const Result got = run(backend(), c);
    for (std::int64_t t = 0; t < 6; ++t) {
      ASSERT_EQ(std::isnan(got.forward.acc[static_cast<std::size_t>(t * 64)]), t == 4);
      ASSERT_EQ(std::isnan(got.backward.vectors[static_cast<std::size_t>(t * 64)]), t == 4);
    }
    for (const double value : got.backward.table) ASSERT_FALSE(std::isnan(value));
  }
}

TEST_P(EthosExpertsOn, SameBitsEachTime) {
  const Case c = make_case(element(), 50, 64, 30, 512, Spread::skewed, 15);
  const Result a = run(backend(), c);
  const Result b = run(backend(), c);
  EXPECT_EQ(a.forward.acc, b.forward.acc);
  EXPECT_EQ(a.forward.p, b.forward.p);
  EXPECT_EQ(a.backward.scores, b.backward.scores);
  EXPECT_EQ(a.backward.vectors, b.backward.vectors);
  EXPECT_EQ(a.backward.table, b.backward.table);
}

INSTANTIATE_TEST_SUITE_P(All, EthosExpertsOn,
                         ::testing::Combine(::testing::ValuesIn(backends()),
                                            ::testing::Values(Element::f32, Element::bf16)),
                         [](const auto& info) {
                           return std::string(name_of(std::get<0>(info.param))) +
                                  (std::get<1>(info.param) == Element::f32 ? "_f32" : "_bf16");
                         });

TEST(EthosWalk, SortsWhereTheTableExceedsTheCacheAndIsReadMoreThanOnce) {
  constexpr std::int64_t kCache = 60 << 20;
  EXPECT_TRUE(ethos_walk(32768, 128, 262144, 512, Element::bf16, kCache).sorted);
  EXPECT_FALSE(ethos_walk(64, 128, 262144, 512, Element::bf16, kCache).sorted);
  EXPECT_FALSE(ethos_walk(32768, 128, 16384, 512, Element::bf16, kCache).sorted);
}

TEST(ExpertGradColumns, TheWidestSliceWhoseRowsFitTheCache) {
  constexpr std::int64_t kCache = 60 << 20;
  EXPECT_EQ(expert_grad_columns(32768, 512, Element::bf16, kCache), 128);
  EXPECT_EQ(expert_grad_columns(1024, 512, Element::bf16, kCache), 512);
  EXPECT_EQ(expert_grad_columns(1024, 512, Element::f32, kCache), 256);
  EXPECT_EQ(expert_grad_columns(1024, 64, Element::bf16, kCache), 128);
  EXPECT_EQ(expert_grad_columns(std::int64_t{1} << 30, 512, Element::f32, kCache), 64);
}

}  // namespace
}  // namespace subspace::kernels
