// The walks over stored experts (PEER), and their gradients by the two-table sums.
#include "kernels/stored_experts.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "kernels/expert_grad.h"
#include "kernels/experts_bound.h"
#include "kernels/on_backend.h"

namespace subspace::kernels {
namespace {

struct Case {
  Element element;
  Routed r;
  Doubles x;
  Doubles down;
  Doubles up;
  Doubles grad;
};

Case make_case(Element element, std::int64_t tokens, std::int64_t selections, std::int64_t experts,
               std::int64_t width, double skew = 1) {
  Case c{element, {tokens, selections, experts, width, {}, {}}, {}, {}, {}, {}};
  const auto seed = static_cast<std::uint64_t>(width + tokens);
  const double scale = 1 / std::sqrt(static_cast<double>(width));
  c.x = normals(element, tokens * width, 1.5, seed);
  c.down = normals(element, experts * width, scale, seed + 1);
  c.up = normals(element, experts * width, scale, seed + 2);
  c.grad = normals(element, tokens * width, 1, seed + 3);
  c.r.scores = normals(Element::f32, tokens * selections, 0.3, seed + 4);
  Random random(seed, 5);
  for (std::int64_t m = 0; m < tokens * selections; ++m) {
    c.r.index.push_back(
        static_cast<std::int64_t>(std::pow(random.uniform(), skew) * static_cast<double>(experts)));
  }
  return c;
}

struct Result {
  ExpertsForward forward;
  ExpertsBackward backward;
};

void run_walks(Backend backend, const StoredExperts& forward, const StoredExpertsGrad& back,
               const ExpertGrad& sums, std::int64_t columns) {
#ifdef SUBSPACE_CUDA
  if (backend == Backend::cuda) {
    stored_experts_cuda(forward, nullptr);
    stored_experts_grad_cuda(back, nullptr);
    expert_lists_cuda(sums.lists, nullptr);
    expert_grad_cuda(sums, nullptr, columns);
    return;
  }
#endif
  (void)columns;
  stored_experts_cpu(forward, 2, isa_of(backend));
  stored_experts_grad_cpu(back, 2, isa_of(backend));
  expert_lists_cpu(sums.lists);
  expert_grad_cpu(sums, 2, isa_of(backend));
}

Result run(Backend backend, const Case& c, std::int64_t columns = 0, bool split = false) {
  const Routed& r = c.r;
  const std::int64_t bytes = element_bytes(c.element);
  const std::int64_t count = r.tokens * r.selections;
  using Bytes = Buffer<std::uint8_t>;
  Bytes x(backend, encode(c.element, c.x));
  Bytes down(backend, encode(c.element, c.down));
  Bytes up(backend, encode(c.element, c.up));
  Bytes grad(backend, encode(c.element, c.grad));
  Buffer<float> scores(backend, floats(r.scores));
  Buffer<std::int64_t> index(backend, r.index);
  Bytes y(backend, r.tokens * r.width * bytes);
  Bytes grad_x(backend, r.tokens * r.width * bytes);
  Bytes grad_up(backend, r.experts * r.width * bytes);
  Bytes grad_down(backend, r.experts * r.width * bytes);
  Buffer<float> p(backend, count);
  Buffer<float> grad_scores(backend, count);
  Buffer<RowWeights> weights(backend, count);
  Buffer<std::uint32_t> expert(backend, count);
  Buffer<std::uint32_t> selection(backend, count);
  Buffer<std::uint32_t> offsets(backend, r.experts + 1);
  Bytes workspace(backend, expert_lists_workspace(count));
  Buffer<float> partial(backend, expert_grad_workspace(count, r.width, true) / 4);
  Buffer<float> parts(backend, r.tokens * walk_split(r.tokens, r.selections).parts * r.width);
  const StoredExperts forward{.x = x.data(),
                              .scores = scores.data(),
                              .index = index.data(),
                              .down = down.data(),
                              .up = up.data(),
                              .y = y.data(),
                              .p = p.data(),
                              .partial = split ? parts.data() : nullptr,
                              .tokens = r.tokens,
                              .selections = r.selections,
                              .experts = r.experts,
                              .width = r.width,
                              .element = c.element};
  const StoredExpertsGrad back{.grad = grad.data(),
                               .scores = scores.data(),
                               .index = index.data(),
                               .down = down.data(),
                               .up = up.data(),
                               .p = p.data(),
                               .grad_scores = grad_scores.data(),
                               .weights = weights.data(),
                               .grad_x = grad_x.data(),
                               .tokens = r.tokens,
                               .selections = r.selections,
                               .experts = r.experts,
                               .width = r.width,
                               .element = c.element};
  const ExpertGrad sums{.grad = grad.data(),
                        .vectors = x.data(),
                        .weights = weights.data(),
                        .lists = {.index = index.data(),
                                  .count = count,
                                  .experts = r.experts,
                                  .expert = expert.data(),
                                  .selection = selection.data(),
                                  .offsets = offsets.data(),
                                  .workspace = workspace.data()},
                        .output = grad_up.data(),
                        .input = grad_down.data(),
                        .pre = nullptr,
                        .partial = partial.data(),
                        .tokens = r.tokens,
                        .selections = r.selections,
                        .width = r.width,
                        .element = c.element};
  run_walks(backend, forward, back, sums, columns);
  const auto wide = [](const std::vector<float>& v) { return Doubles(v.begin(), v.end()); };
  return {{decode(c.element, y.values()), wide(p.values())},
          {wide(grad_scores.values()),
           {},
           {},
           decode(c.element, grad_x.values()),
           decode(c.element, grad_up.values()),
           decode(c.element, grad_down.values())}};
}

void expect_reference(const Case& c, const Result& got) {
  const ExpertsForward forward = stored_experts_reference(c.r, c.x, c.down, c.up);
  const ExpertsBackward back = stored_experts_grad_reference(c.r, c.x, c.down, c.up, c.grad);
  const ExpertsBound bound = experts_bound(c.r, c.x, c.down, c.up, c.grad, c.element);
  expect_within(got.forward.p, forward.p, bound.forward.p, "p");
  expect_within(got.forward.acc, forward.acc, bound.forward.acc, "y");
  expect_within(got.backward.scores, back.scores, bound.backward.scores, "grad_scores");
  expect_within(got.backward.vectors, back.vectors, bound.backward.vectors, "grad_x");
  expect_within(got.backward.table, back.table, bound.backward.table, "grad_up");
  expect_within(got.backward.down, back.down, bound.backward.down, "grad_down");
}

class StoredExpertsOn : public ::testing::TestWithParam<std::tuple<Backend, Element>> {
 protected:
  void SetUp() override {
    if (const std::string why = missing_for(backend()); !why.empty()) GTEST_SKIP() << why;
  }
  Backend backend() const { return std::get<0>(GetParam()); }
  Element element() const { return std::get<1>(GetParam()); }
};

TEST_P(StoredExpertsOn, AgreesWithTheReferenceForAllWidths) {
  for (const std::int64_t width : {32, 96, 256, 288, 512, 544, 1024, 2048, 4096}) {
    SCOPED_TRACE(width);
    const Case c = make_case(element(), 5, 12, 40, width);
    expect_reference(c, run(backend(), c));
  }
}

TEST_P(StoredExpertsOn, AgreesWithTheReferenceForOddCounts) {
  struct Shape {
    std::int64_t tokens, selections, experts;
  };
  for (const Shape& s : {Shape{1, 1, 1}, Shape{9, 1, 5}, Shape{3, 130, 31}, Shape{2, 1000, 300}}) {
    SCOPED_TRACE(::testing::Message() << s.tokens << " " << s.selections << " " << s.experts);
    const Case c = make_case(element(), s.tokens, s.selections, s.experts, 64);
    expect_reference(c, run(backend(), c));
  }
}

TEST_P(StoredExpertsOn, FewTokensInPartsAgreeWithTheReference) {
  struct Shape {
    std::int64_t tokens, selections, width;
  };
  for (const Shape& s : {Shape{1, 128, 1024}, Shape{8, 128, 512}, Shape{64, 128, 64},
                         Shape{3, 9, 96}, Shape{1, 1100, 256}, Shape{5, 61, 4096}}) {
    ASSERT_GT(walk_split(s.tokens, s.selections).parts, 1);
    Case c = make_case(element(), s.tokens, s.selections, 40, s.width);
    SCOPED_TRACE(::testing::Message() << s.tokens << " " << s.selections << " " << s.width);
    expect_reference(c, run(backend(), c, 0, /*split=*/true));
    c.r.index.back() = 40;
    const Result got = run(backend(), c, 0, /*split=*/true);
    for (std::int64_t i = 0; i < s.tokens * s.width; ++i) {
      ASSERT_EQ(std::isnan(got.forward.acc[static_cast<std::size_t>(i)]),
                i / s.width == s.tokens - 1);
    }
  }
}

TEST_P(StoredExpertsOn, SkewedRoutingGoesThroughPieces) {
  const Case c = make_case(element(), 40, 100, 30, 160, 12);
  const std::int64_t least = 256 / element_bytes(element());
  for (const std::int64_t columns : {least, 2 * least, 4 * least}) {
    expect_reference(c, run(backend(), c, columns));
    if (backend() != Backend::cuda) return;
  }
}

TEST_P(StoredExpertsOn, NoTokens) {
  const Result got = run(backend(), make_case(element(), 0, 8, 6, 64));
  for (const double value : got.backward.table) ASSERT_EQ(value, 0);
  for (const double value : got.backward.down) ASSERT_EQ(value, 0);
}

TEST_P(StoredExpertsOn, NanAndIndicesOutOfRangeStayWithTheirToken) {
  Case c = make_case(element(), 6, 10, 30, 96);
  c.r.scores[1 * 10 + 2] = std::numeric_limits<double>::quiet_NaN();
  c.r.index[4 * 10 + 9] = 30;
  c.r.index[4 * 10 + 8] = -7;
  const Result got = run(backend(), c);
  for (std::int64_t t = 0; t < 6; ++t) {
    ASSERT_EQ(std::isnan(got.forward.acc[static_cast<std::size_t>(t * 96 + 5)]), t == 1 || t == 4);
    ASSERT_EQ(std::isnan(got.backward.vectors[static_cast<std::size_t>(t * 96 + 5)]),
              t == 1 || t == 4);
  }
}

INSTANTIATE_TEST_SUITE_P(All, StoredExpertsOn,
                         ::testing::Combine(::testing::ValuesIn(backends()),
                                            ::testing::Values(Element::f32, Element::bf16)),
                         [](const auto& info) {
                           return std::string(name_of(std::get<0>(info.param))) +
                                  (std::get<1>(info.param) == Element::f32 ? "_f32" : "_bf16");
                         });

}  // namespace
}  // namespace subspace::kernels
