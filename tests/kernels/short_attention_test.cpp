// Attention over short sequences and its gradients against plain double precision.
#include "kernels/short_attention.h"

#include <limits>

#include "kernels/training_kernels.h"

namespace subspace::kernels {
namespace {

constexpr Element kBf16 = Element::bf16;
constexpr std::int64_t kWide = 3;  // values lie in rows of this many heads' widths

struct Case {
  std::int64_t rows, length, heads;
  bool causal;
  double scale;
  Doubles q, k, v, grad;  // [rows, length, heads, 32]
  std::int64_t count() const { return rows * length * heads * kShortHead; }
};

Case make_case(std::int64_t rows, std::int64_t length, std::int64_t heads, bool causal) {
  Case c{rows, length, heads, causal, 0.25, {}, {}, {}, {}};
  const auto seed = static_cast<std::uint64_t>(length + heads);
  c.q = normals(kBf16, c.count(), 1, seed);
  c.k = normals(kBf16, c.count(), 1, seed + 1);
  c.v = normals(kBf16, c.count(), 1, seed + 2);
  c.grad = normals(kBf16, c.count(), 1, seed + 3);
  return c;
}

/// One head of an operand.
Doubles head_of(const Case& c, const Doubles& all, std::int64_t row, std::int64_t head) {
  Doubles out;
  for (std::int64_t t = 0; t < c.length; ++t) {
    const auto from = all.begin() + ((row * c.length + t) * c.heads + head) * kShortHead;
    out.insert(out.end(), from, from + kShortHead);
  }
  return out;
}

struct Result {
  Doubles out, lse, q, k, v;
};

Result run(Backend backend, const Case& c) {
  Doubles spread(static_cast<std::size_t>(c.count() * kWide),
                 std::numeric_limits<double>::quiet_NaN());
  for (std::int64_t i = 0; i < c.count(); ++i) {
    spread[static_cast<std::size_t>(i / kShortHead * kShortHead * kWide + kShortHead +
                                    i % kShortHead)] = c.v[static_cast<std::size_t>(i)];
  }
  Bytes q(backend, encode(kBf16, c.q)), k(backend, encode(kBf16, c.k));
  Bytes v(backend, encode(kBf16, spread)), grad(backend, encode(kBf16, c.grad));
  Bytes out(backend, 2 * c.count()), gq(backend, 2 * c.count());
  Bytes gk(backend, 2 * c.count()), gv(backend, 2 * c.count());
  Buffer<float> lse(backend, c.rows * c.heads * c.length);
  ShortAttentionGrad p;
  p.forward = {.q = q.data(),
               .k = k.data(),
               .v = {v.data() + 2 * kShortHead, c.heads * kShortHead * kWide, kShortHead * kWide},
               .out = out.data(),
               .lse = lse.data(),
               .rows = c.rows,
               .length = c.length,
               .heads = c.heads,
               .scale = static_cast<float>(c.scale),
               .causal = c.causal};
  p.grad = grad.data();
  p.grad_q = gq.data();
  p.grad_k = gk.data();
  p.grad_v = gv.data();
  SUBSPACE_RUN_ON(backend, short_attention, p.forward);
  SUBSPACE_RUN_ON(backend, short_attention_grad, p);
  return {decode(kBf16, out.values()), wide(lse.values()), decode(kBf16, gq.values()),
          decode(kBf16, gk.values()), decode(kBf16, gv.values())};
}

/// Bounds of one head: how far the softmax and the slopes can be off, carried through the products.
/// `backward` reads an `out` that is rounded, so its shifts are off by that.
Result bounds(const Case& c, const Doubles& q, const Doubles& k, const Doubles& v,
              const Doubles& grad, const AttentionResult& want) {
  const auto n = static_cast<std::size_t>(c.length), w = static_cast<std::size_t>(kShortHead);
  const double u = unit(), b = stored(kBf16);
  Result out{Doubles(n * w), Doubles(n), Doubles(n * w), Doubles(n * w), Doubles(n * w)};
  const auto size = [w](const Doubles& x, std::size_t i, const Doubles& y, std::size_t j) {
    double sum = 0;
    for (std::size_t a = 0; a < w; ++a) sum += std::abs(x[i * w + a] * y[j * w + a]);
    return sum;
  };
  for (std::size_t t = 0; t < n; ++t) {
    double most = 0;
    for (std::size_t s = 0; s < n; ++s) {
      if (want.p[t * n + s] > 0) most = std::max(most, c.scale * size(q, t, k, s));
    }
    // Scores, exponentials (powers of two of scaled scores) and a sum of positive terms.
    const double off = u * (40 * most + 4 * std::abs(want.lse[t]) + static_cast<double>(n) + 16);
    out.lse[t] = off * (1 + std::abs(want.lse[t]));
    double shift_off = 0;
    for (std::size_t a = 0; a < w; ++a) {
      double sum = 0;
      for (std::size_t s = 0; s < n; ++s) sum += want.p[t * n + s] * std::abs(v[s * w + a]);
      const double mine = (2 * off + 2 * b) * sum + b * std::abs(want.out[t * w + a]);
      out.out[t * w + a] = mine;
      shift_off += std::abs(grad[t * w + a]) * (mine + 40 * u * std::abs(want.out[t * w + a]));
    }
    for (std::size_t s = 0; s < n; ++s) {
      const double p = want.p[t * n + s];
      const double slope_off = 2 * (b + 3 * off) * std::abs(want.slope[t * n + s]) +
                               p * (1 + 3 * off) * (shift_off + 40 * u * size(grad, t, v, s)) * 1.1;
      for (std::size_t a = 0; a < w; ++a) {
        out.q[t * w + a] += c.scale * slope_off * std::abs(k[s * w + a]);
        out.k[s * w + a] += c.scale * slope_off * std::abs(q[t * w + a]);
        out.v[s * w + a] += p * (b + 3 * off) * 1.1 * std::abs(grad[t * w + a]);
      }
    }
  }
  const double sums = static_cast<double>(n + 8) * u;
  for (std::size_t i = 0; i < n * w; ++i) {
    out.q[i] += (b + sums) * (std::abs(want.q[i]) + out.q[i]) + 1e-6;
    out.k[i] += (b + sums) * (std::abs(want.k[i]) + out.k[i]) + 1e-6;
    out.v[i] += (b + sums) * (std::abs(want.v[i]) + out.v[i]) + 1e-6;
  }
  return out;
}

class ShortAttentionOn : public ::testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (const std::string why = missing_for(GetParam()); !why.empty()) GTEST_SKIP() << why;
  }
};

TEST_P(ShortAttentionOn, AgreesWithTheReference) {
  struct Sizes {
    std::int64_t rows, length, heads;
  };
  for (const Sizes& s : {Sizes{1, 32, 1}, Sizes{2, 64, 3}, Sizes{3, 96, 2}, Sizes{2, 128, 8}}) {
    for (const bool causal : {false, true}) {
      SCOPED_TRACE(::testing::Message() << s.length << (causal ? " causal" : ""));
      const Case c = make_case(s.rows, s.length, s.heads, causal);
      const Result got = run(GetParam(), c);
      for (std::int64_t i = 0; i < c.rows * c.heads; ++i) {
        const auto of = [&](const Doubles& all) {
          return head_of(c, all, i / c.heads, i % c.heads);
        };
        const Doubles q = of(c.q), k = of(c.k), v = of(c.v), grad = of(c.grad);
        const AttentionResult want = attention_reference(q, k, v, grad, c.length, c.scale, causal);
        const Result bound = bounds(c, q, k, v, grad, want);
        const Doubles lse(got.lse.begin() + i * c.length, got.lse.begin() + (i + 1) * c.length);
        expect_within(lse, want.lse, bound.lse, "lse");
        expect_within(of(got.out), want.out, bound.out, "out");
        expect_within(of(got.q), want.q, bound.q, "grad_q");
        expect_within(of(got.k), want.k, bound.k, "grad_k");
        expect_within(of(got.v), want.v, bound.v, "grad_v");
      }
    }
  }
}

TEST_P(ShortAttentionOn, GivesTheSameBitsAgain) {
  const Case c = make_case(4, 128, 8, false);
  const Result once = run(GetParam(), c), again = run(GetParam(), c);
  EXPECT_EQ(once.out, again.out);
  EXPECT_EQ(once.q, again.q);
  EXPECT_EQ(once.k, again.k);
  EXPECT_EQ(once.v, again.v);
}

TEST_P(ShortAttentionOn, NanStaysInItsHead) {
  Case c = make_case(2, 64, 2, false);
  c.q[5 * 2 * kShortHead + 3] = std::numeric_limits<double>::quiet_NaN();  // row 0, head 0
  const Result got = run(GetParam(), c);
  for (std::int64_t i = 0; i < 4; ++i) {
    bool any = false;
    for (const double x : head_of(c, got.k, i / 2, i % 2)) any |= std::isnan(x);
    EXPECT_EQ(any, i == 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ShortAttentionOn, ::testing::ValuesIn(two_backends()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace subspace::kernels
