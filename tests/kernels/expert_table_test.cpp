// Generation of the table of experts, the lists of selections, and the choice between table and
// distinct experts.
#include "kernels/expert_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "kernels/expert_lists.h"
#include "kernels/gelu.h"
#include "kernels/on_backend.h"

namespace subspace::kernels {
namespace {

TEST(Gelu, ExactOneHasKnownValuesAndItsOwnSlope) {
  EXPECT_EQ(gelu_exact(0).value, 0);
  EXPECT_EQ(gelu_exact(0).slope, 0.5);
  EXPECT_NEAR(gelu_exact(1).value, 0.8413447460685429, 1e-15);
  EXPECT_NEAR(gelu_exact(-1).value, -0.15865525393145705, 1e-15);
  for (const double x : {-4.0, -1.3, -0.2, 0.4, 2.5}) {
    const double step = 1e-5;
    const double slope = (gelu_exact(x + step).value - gelu_exact(x - step).value) / (2 * step);
    EXPECT_NEAR(gelu_exact(x).slope, slope, 1e-9) << x;
  }
}

TEST(Gelu, FastOneStaysWithinItsError) {
  for (int i = -400000; i <= 400000; ++i) {
    const float x = static_cast<float>(i) * 5e-5f;
    const Gelu<float> fast = gelu_fast(x);
    const Gelu<double> exact = gelu_exact(x);
    const double size = std::abs(static_cast<double>(x));
    ASSERT_FALSE(!(std::abs(fast.value - exact.value) <= kGeluError * size)) << x;
    ASSERT_FALSE(!(std::abs(fast.slope - exact.slope) <= 2 * kGeluError)) << x;
  }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(gelu_fast(kInfinity).value, kInfinity);
  EXPECT_EQ(gelu_fast(kInfinity).slope, 1);
  EXPECT_EQ(gelu_fast(-kInfinity).value, 0);
  EXPECT_EQ(gelu_fast(-kInfinity).slope, 0);
  EXPECT_TRUE(std::isnan(gelu_fast(std::nanf("")).value));
  EXPECT_TRUE(std::isnan(gelu_fast(std::nanf("")).slope));
}

class ExpertTableOn : public ::testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (const std::string why = missing_for(GetParam()); !why.empty()) GTEST_SKIP() << why;
  }
};

TEST_P(ExpertTableOn, GeluAndItsBackward) {
  for (const Element element : {Element::f32, Element::bf16}) {
    for (const std::int64_t count : {1, 7, 8, 100, 4099, 70000}) {
      const Doubles pre = normals(element, count, 2, 1);
      const Doubles grad = normals(element, count, 1, 2);
      Buffer<std::uint8_t> in(GetParam(), encode(element, pre));
      Buffer<std::uint8_t> upstream(GetParam(), encode(element, grad));
      const double stored = std::ldexp(1, element == Element::f32 ? -23 : -8);
      for (const bool backward : {false, true}) {
        Buffer<std::uint8_t> out(GetParam(), count * element_bytes(element));
        const ExpertGelu p{.pre = in.data(),
                           .grad = backward ? upstream.data() : nullptr,
                           .out = out.data(),
                           .count = count,
                           .element = element};
#ifdef SUBSPACE_CUDA
        if (GetParam() == Backend::cuda) expert_gelu_cuda(p, nullptr);
#endif
        if (GetParam() != Backend::cuda) expert_gelu_cpu(p, 2);
        Doubles want;
        Doubles bound;
        for (std::size_t i = 0; i < pre.size(); ++i) {
          const Gelu<double> exact = gelu_exact(pre[i]);
          want.push_back(backward ? grad[i] * exact.slope : exact.value);
          const double off = kGeluError * (backward ? 2 * std::abs(grad[i]) : std::abs(pre[i]));
          bound.push_back(off + stored * (std::abs(want[i]) + off));
        }
        expect_within(decode(element, out.values()), want, bound, backward ? "grad" : "gelu");
      }
    }
  }
}

TEST_P(ExpertTableOn, GathersRowsAndZeroesForIndicesOutOfRange) {
  for (const std::int64_t width : {1, 3, 6, 128}) {
    const Doubles rows = normals(Element::bf16, 9 * width, 1, 1);
    Buffer<std::uint8_t> in(GetParam(), encode(Element::bf16, rows));
    Buffer<std::int64_t> index(GetParam(), std::vector<std::int64_t>{8, 0, 3, -1, 9, 3});
    Buffer<std::uint8_t> out(GetParam(), 6 * width * 2);
    Buffer<std::int64_t> places(GetParam(), 6);
    const GatherRows p{.rows = in.data(),
                       .index = index.data(),
                       .out = out.data(),
                       .places = width == 3 ? nullptr : places.data(),
                       .count = 6,
                       .count_rows = 9,
                       .width = width,
                       .element = Element::bf16};
#ifdef SUBSPACE_CUDA
    if (GetParam() == Backend::cuda) gather_rows_cuda(p, nullptr);
#endif
    if (GetParam() != Backend::cuda) gather_rows_cpu(p, 2);
    if (width != 3) {
      EXPECT_EQ(places.values(), (std::vector<std::int64_t>{0, 1, 2, -1, -1, 5}));
    }
    const Doubles got = decode(Element::bf16, out.values());
    const std::vector<std::int64_t> from = {8, 0, 3, -1, -1, 3};
    for (std::int64_t i = 0; i < 6 * width; ++i) {
      const std::int64_t row = from[static_cast<std::size_t>(i / width)];
      const double want = row < 0 ? 0 : rows[static_cast<std::size_t>(row * width + i % width)];
      ASSERT_EQ(got[static_cast<std::size_t>(i)], want) << i;
    }
  }
}

/// Lists and distinct experts of random selections, every promise checked by itself.
void check_lists(Backend backend, std::int64_t count, std::int64_t experts, bool with_bad) {
  Random random(static_cast<std::uint64_t>(count + experts), 1);
  std::vector<std::int64_t> index;
  for (std::int64_t i = 0; i < count; ++i) {
    index.push_back(static_cast<std::int64_t>(random.uniform() * static_cast<double>(experts)));
    if (with_bad && i % 5 == 2) index.back() = i % 2 == 0 ? -1 : experts + (std::int64_t{1} << 33);
  }
  Buffer<std::int64_t> given(backend, index);
  Buffer<std::uint32_t> expert(backend, count);
  Buffer<std::uint32_t> selection(backend, count);
  Buffer<std::uint32_t> offsets(backend, experts + 1);
  Buffer<std::uint8_t> workspace(backend, expert_lists_workspace(count));
  Buffer<std::int64_t> distinct(backend, count);
  Buffer<std::int64_t> remapped(backend, count);
  Buffer<std::int64_t> number(backend, 1);
  const DistinctExperts p{.lists = {.index = given.data(),
                                    .count = count,
                                    .experts = experts,
                                    .expert = expert.data(),
                                    .selection = selection.data(),
                                    .offsets = offsets.data(),
                                    .workspace = workspace.data()},
                          .distinct = distinct.data(),
                          .remapped = remapped.data(),
                          .number = number.data()};
#ifdef SUBSPACE_CUDA
  if (backend == Backend::cuda) {
    expert_lists_cuda(p.lists, nullptr);
    distinct_experts_cuda(p, nullptr);
  }
#endif
  if (backend != Backend::cuda) {
    expert_lists_cpu(p.lists);
    distinct_experts_cpu(p);
  }
  const auto places = selection.values();
  const auto ends = offsets.values();
  ASSERT_EQ(ends[0], 0u);
  std::set<std::int64_t> seen;
  for (std::int64_t e = 0; e < experts; ++e) {
    const auto begin = ends[static_cast<std::size_t>(e)];
    const auto end = ends[static_cast<std::size_t>(e + 1)];
    ASSERT_LE(begin, end);
    for (auto i = begin; i < end; ++i) {
      ASSERT_EQ(index[places[i]], e);
      ASSERT_EQ(expert.values()[i], e);
      ASSERT_TRUE(i == begin || places[i - 1] < places[i]) << "not stable";
      seen.insert(e);
    }
  }
  const auto valid = static_cast<std::int64_t>(std::count_if(
      index.begin(), index.end(), [&](std::int64_t e) { return e >= 0 && e < experts; }));
  ASSERT_EQ(ends.back(), valid);
  ASSERT_EQ(number.values()[0], static_cast<std::int64_t>(seen.size()));
  ASSERT_TRUE(std::equal(seen.begin(), seen.end(), distinct.values().begin()));
  for (std::size_t i = 0; i < index.size(); ++i) {
    const std::int64_t at = remapped.values()[i];
    if (index[i] < 0 || index[i] >= experts) {
      ASSERT_EQ(at, -1);
    } else {
      ASSERT_EQ(distinct.values()[static_cast<std::size_t>(at)], index[i]);
    }
  }
}

TEST_P(ExpertTableOn, ListsAndDistinctExperts) {
  for (const bool with_bad : {false, true}) {
    for (const auto& [count, experts] : std::vector<std::pair<std::int64_t, std::int64_t>>{
             {0, 5}, {1, 1}, {10, 1}, {100, 7}, {1000, 4096}, {5000, 4095}, {20000, 300}}) {
      SCOPED_TRACE(::testing::Message() << count << " of " << experts);
      check_lists(GetParam(), count, experts, with_bad);
    }
  }
}

std::vector<Backend> table_backends() {
  auto all = backends();
  all.erase(std::find(all.begin(), all.end(), Backend::avx2));  // there is one version for the CPU
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, ExpertTableOn, ::testing::ValuesIn(table_backends()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST(ChooseGeneration, DistinctForFewSelections) {
  EXPECT_EQ(choose_generation(128, 262144), Generate::distinct);
  EXPECT_EQ(choose_generation(64 * 128, 262144), Generate::distinct);
  EXPECT_EQ(choose_generation(32768 * 128, 262144), Generate::table);
  EXPECT_EQ(choose_generation(4, 16), Generate::table);
  EXPECT_EQ(choose_generation(3, 16), Generate::distinct);
  EXPECT_EQ(choose_generation(0, 16), Generate::distinct);
}

}  // namespace
}  // namespace subspace::kernels
