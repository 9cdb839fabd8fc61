// Heads from their projections, turned, and the way back, against the turn's whole matrix.
#include "kernels/rotary_heads.h"

#include <limits>

#include "kernels/training_kernels.h"

namespace subspace::kernels {
namespace {

struct Layout {
  const char* name;
  std::int64_t heads, width, own_keys, begin, dims, value;
  bool interleaved;
};

constexpr std::int64_t kTokens = 13, kLength = 5;

/// One row a token: queries, keys with values, the shared key, each behind the other, so that
/// nothing lies without gaps.
struct Places {
  explicit Places(const Layout& n)
      : k(n.heads * n.width),
        shared(k + n.heads * (n.own_keys + n.value)),
        row(shared + n.width - n.own_keys) {}
  std::int64_t k, shared, row;
};

struct Tables {
  Doubles cos, sin;
};
Tables tables(const Layout& n) {
  Tables out;
  for (std::int64_t i = 0; i < kLength * n.dims / 2; ++i) {
    out.cos.push_back(static_cast<float>(std::cos(0.37 * static_cast<double>(i))));
    out.sin.push_back(static_cast<float>(std::sin(0.37 * static_cast<double>(i))));
  }
  return out;
}

RotaryHeads operands(const Layout& n, Element element, void* rows, const float* cos,
                     const float* sin) {
  const Places at(n);
  auto* start = static_cast<std::uint8_t*>(rows);
  const auto place = [&](std::int64_t column, std::int64_t apart) {
    return HeadRows{start + column * element_bytes(element), at.row, apart};
  };
  RotaryHeads p;
  p.q = place(0, n.width);
  p.k = place(at.k, n.own_keys + n.value);
  if (n.own_keys < n.width) p.shared = place(at.shared, 0);
  p.cos = cos;
  p.sin = sin;
  p.tokens = kTokens;
  p.heads = p.kv_heads = n.heads;
  p.width = n.width;
  p.own_keys = n.own_keys;
  p.begin = n.begin;
  p.dims = n.dims;
  p.length = kLength;
  p.interleaved = n.interleaved;
  p.element = element;
  return p;
}

Doubles slice(const Doubles& values, std::int64_t begin, std::int64_t count) {
  return {values.begin() + begin, values.begin() + begin + count};
}

Doubles turned(const Layout& n, const Tables& t, std::int64_t token, const Doubles& head,
               bool back) {
  const std::int64_t half = n.dims / 2, row = token % kLength * half;
  return turned_reference(head, slice(t.cos, row, half), slice(t.sin, row, half), n.begin,
                          n.interleaved, back);
}

double bound_of(Element element, double value, double size) {
  return stored(element) * std::abs(value) + 4 * unit() * size;
}

class RotaryHeadsOn : public OnBackend {
 protected:
  void check_forward(const Layout& n) {
    const Places at(n);
    const Tables t = tables(n);
    const Doubles rows = normals(element(), kTokens * at.row, 1, 3);
    Bytes there(backend(), encode(element(), rows));
    Buffer<float> cos(backend(), floats(t.cos)), sin(backend(), floats(t.sin));
    const std::int64_t count = kTokens * n.heads * n.width;
    Bytes q(backend(), count * element_bytes(element()));
    Bytes k(backend(), count * element_bytes(element()));
    RotaryHeads p = operands(n, element(), there.data(), cos.data(), sin.data());
    p.q_out = q.data();
    p.k_out = k.data();
    ASSERT_TRUE(rotary_heads_fit(p, n.value));
    SUBSPACE_RUN_ON(backend(), rotary_heads, p);
    Doubles want_q, want_k, bound_q, bound_k;
    for (std::int64_t token = 0; token < kTokens; ++token) {
      for (std::int64_t h = 0; h < n.heads; ++h) {
        const std::int64_t row = token * at.row;
        append(n, t, token, slice(rows, row + h * n.width, n.width), want_q, bound_q);
        Doubles key = slice(rows, row + at.k + h * (n.own_keys + n.value), n.own_keys);
        const Doubles rest = slice(rows, row + at.shared, n.width - n.own_keys);
        key.insert(key.end(), rest.begin(), rest.end());
        append(n, t, token, key, want_k, bound_k);
      }
    }
    expect_within(decode(element(), q.values()), want_q, bound_q, "q");
    expect_within(decode(element(), k.values()), want_k, bound_k, "k");
  }

  void check_backward(const Layout& n) {
    const Places at(n);
    const Tables t = tables(n);
    const std::int64_t count = kTokens * n.heads * n.width;
    const Doubles gq = normals(element(), count, 1, 5), gk = normals(element(), count, 1, 6);
    const Doubles gv = normals(element(), kTokens * n.heads * n.value, 1, 7);
    Bytes q(backend(), encode(element(), gq)), k(backend(), encode(element(), gk));
    Bytes v(backend(), encode(element(), gv));
    Bytes there(backend(), kTokens * at.row * element_bytes(element()));
    Buffer<float> cos(backend(), floats(t.cos)), sin(backend(), floats(t.sin));
    RotaryHeadsGrad p;
    p.forward = operands(n, element(), there.data(), cos.data(), sin.data());
    p.grad_q = q.data();
    p.grad_k = k.data();
    p.grad_v = v.data();
    p.v = p.forward.k;
    p.v.data =
        static_cast<const std::uint8_t*>(p.forward.k.data) + n.own_keys * element_bytes(element());
    p.value = n.value;
    SUBSPACE_RUN_ON(backend(), rotary_heads_grad, p);
    Doubles want(static_cast<std::size_t>(kTokens * at.row)), bound(want.size());
    for (std::int64_t token = 0; token < kTokens; ++token) {
      const auto row = static_cast<std::size_t>(token * at.row);
      Doubles sizes(static_cast<std::size_t>(n.width - n.own_keys));
      for (std::int64_t h = 0; h < n.heads; ++h) {
        const std::int64_t head = token * n.heads + h;
        const Doubles dq = turned(n, t, token, slice(gq, head * n.width, n.width), true);
        const Doubles dk = turned(n, t, token, slice(gk, head * n.width, n.width), true);
        for (std::int64_t i = 0; i < n.width; ++i) {
          const auto j = static_cast<std::size_t>(i);
          const std::size_t q_at = row + static_cast<std::size_t>(h * n.width) + j;
          want[q_at] = dq[j];
          bound[q_at] = bound_of(element(), dq[j], 8);
          if (i < n.own_keys) {
            const std::size_t k_at =
                row + static_cast<std::size_t>(at.k + h * (n.own_keys + n.value)) + j;
            want[k_at] = dk[j];
            bound[k_at] = bound_of(element(), dk[j], 8);
          } else {
            want[row + static_cast<std::size_t>(at.shared - n.own_keys) + j] += dk[j];
            sizes[j - static_cast<std::size_t>(n.own_keys)] += 8;
          }
        }
        for (std::int64_t i = 0; i < n.value; ++i) {
          want[row + static_cast<std::size_t>(at.k + h * (n.own_keys + n.value) + n.own_keys + i)] =
              gv[static_cast<std::size_t>(head * n.value + i)];
        }
      }
      for (std::size_t i = 0; i < sizes.size(); ++i) {
        const std::size_t s_at = row + static_cast<std::size_t>(at.shared) + i;
        bound[s_at] = bound_of(element(), want[s_at], static_cast<double>(n.heads) * sizes[i]);
      }
    }
    expect_within(decode(element(), there.values()), want, bound, "gradients");
  }

 private:
  void append(const Layout& n, const Tables& t, std::int64_t token, const Doubles& head,
              Doubles& want, Doubles& bound) {
    for (const double value : turned(n, t, token, head, false)) {
      want.push_back(value);
      bound.push_back(bound_of(element(), value, 8));
    }
  }
};

const Layout kLayouts[] = {
    {"all of a head", 3, 32, 32, 0, 32, 32, false},
    {"the shared key", 2, 32, 16, 16, 16, 32, true},
    {"the shared key, halves", 3, 48, 32, 32, 16, 24, false},
    {"only a shared key", 2, 32, 0, 0, 32, 16, false},
    {"the tail", 2, 48, 48, 16, 32, 8, true},
    {"the start", 1, 64, 64, 0, 16, 64, false},
    {"one head and a shared key", 1, 32, 16, 16, 16, 16, true},
};

TEST_P(RotaryHeadsOn, TurnsQueriesAndKeys) {
  for (const Layout& n : kLayouts) {
    SCOPED_TRACE(n.name);
    check_forward(n);
  }
}

TEST_P(RotaryHeadsOn, TurnsGradientsBack) {
  for (const Layout& n : kLayouts) {
    SCOPED_TRACE(n.name);
    check_backward(n);
  }
}

TEST_P(RotaryHeadsOn, SaysWhatItCannotTake) {
  RotaryHeads p = operands(kLayouts[0], element(), nullptr, nullptr, nullptr);
  EXPECT_TRUE(rotary_heads_fit(p, 32));
  EXPECT_FALSE(rotary_heads_fit(p, 33));
  p.q.token += 1;
  EXPECT_FALSE(rotary_heads_fit(p, 32));
  p = operands(kLayouts[0], element(), nullptr, nullptr, nullptr);
  p.dims = 6;
  EXPECT_FALSE(rotary_heads_fit(p, 32));
}

SUBSPACE_ON_BACKENDS(RotaryHeadsOn);

}  // namespace
}  // namespace subspace::kernels
