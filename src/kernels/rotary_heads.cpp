#include "kernels/rotary_heads.h"

#include <vector>

#include "kernels/element_rows.h"
#include "kernels/over_batch.h"

namespace subspace::kernels {
namespace {

/// The two coordinates that turn together, as the projection has them and as they come out.
struct Places {
  std::int64_t in_a, in_b, out_a, out_b;
};
Places places(const RotaryHeads& p, std::int64_t i) {
  const std::int64_t half = p.dims / 2, a = p.begin + i, b = p.begin + half + i;
  if (p.interleaved) return {p.begin + 2 * i, p.begin + 2 * i + 1, a, b};
  return {a, b, a, b};
}

bool turns(const RotaryHeads& p, std::int64_t i) { return i >= p.begin && i < p.begin + p.dims; }

template <Element kElement, typename Load>
void turn(const RotaryHeads& p, std::int64_t token, void* out, std::int64_t out_at,
          const Load& load) {
  using V = Values<kElement>;
  for (std::int64_t i = 0; i < p.width; ++i) {
    if (!turns(p, i)) V::store(out, out_at + i, load(i));
  }
  const std::int64_t half = p.dims / 2, row = token % p.length * half;
  for (std::int64_t i = 0; i < half; ++i) {
    const Places at = places(p, i);
    const float a = load(at.in_a), b = load(at.in_b), c = p.cos[row + i], s = p.sin[row + i];
    V::store(out, out_at + at.out_a, a * c - b * s);
    V::store(out, out_at + at.out_b, a * s + b * c);
  }
}

template <Element kElement>
void forward(const RotaryHeads& p, std::int64_t token) {
  using V = Values<kElement>;
  for (std::int64_t h = 0; h < p.heads; ++h) {
    turn<kElement>(p, token, p.q_out, (token * p.heads + h) * p.width, [&](std::int64_t i) {
      return V::load(p.q.data, token * p.q.token + h * p.q.head + i);
    });
  }
  for (std::int64_t h = 0; h < p.kv_heads; ++h) {
    turn<kElement>(p, token, p.k_out, (token * p.kv_heads + h) * p.width, [&](std::int64_t i) {
      if (i >= p.own_keys) return V::load(p.shared.data, token * p.shared.token + i - p.own_keys);
      return V::load(p.k.data, token * p.k.token + h * p.k.head + i);
    });
  }
}

/// Turns the gradient of one head back; store(i, value) takes each coordinate.
template <Element kElement, typename Store>
void turn_back(const RotaryHeads& p, std::int64_t token, const void* grad, std::int64_t at,
               const Store& store) {
  using V = Values<kElement>;
  for (std::int64_t i = 0; i < p.width; ++i) {
    if (!turns(p, i)) store(i, V::load(grad, at + i));
  }
  const std::int64_t half = p.dims / 2, row = token % p.length * half;
  for (std::int64_t i = 0; i < half; ++i) {
    const Places place = places(p, i);
    const float a = V::load(grad, at + place.out_a), b = V::load(grad, at + place.out_b);
    store(place.in_a, a * p.cos[row + i] + b * p.sin[row + i]);
    store(place.in_b, b * p.cos[row + i] - a * p.sin[row + i]);
  }
}

template <Element kElement>
void backward(const RotaryHeadsGrad& g, std::int64_t token) {
  using V = Values<kElement>;
  const RotaryHeads& p = g.forward;
  // The places are const because a forward pass only reads them.
  auto* grad_q = const_cast<void*>(p.q.data);
  auto* grad_k = const_cast<void*>(p.k.data);
  for (std::int64_t h = 0; h < p.heads; ++h) {
    turn_back<kElement>(p, token, g.grad_q, (token * p.heads + h) * p.width,
                        [&](std::int64_t i, float value) {
                          V::store(grad_q, token * p.q.token + h * p.q.head + i, value);
                        });
  }
  std::vector<float> shared(static_cast<std::size_t>(p.width - p.own_keys), 0.0f);
  for (std::int64_t h = 0; h < p.kv_heads; ++h) {
    turn_back<kElement>(p, token, g.grad_k, (token * p.kv_heads + h) * p.width,
                        [&](std::int64_t i, float value) {
                          if (i >= p.own_keys) {
                            shared[static_cast<std::size_t>(i - p.own_keys)] += value;
                          } else {
                            V::store(grad_k, token * p.k.token + h * p.k.head + i, value);
                          }
                        });
    for (std::int64_t i = 0; i < g.value; ++i) {
      V::store(const_cast<void*>(g.v.data), token * g.v.token + h * g.v.head + i,
               V::load(g.grad_v, (token * p.kv_heads + h) * g.value + i));
    }
  }
  for (std::size_t i = 0; i < shared.size(); ++i) {
    V::store(const_cast<void*>(p.shared.data),
             token * p.shared.token + static_cast<std::int64_t>(i), shared[i]);
  }
}

}  // namespace

bool rotary_heads_fit(const RotaryHeads& p, std::int64_t value) {
  const std::int64_t vector = 16 / element_bytes(p.element);
  std::int64_t together = p.begin | p.dims / 2 | p.width | p.own_keys | value;
  for (const HeadRows* rows : {&p.q, &p.k, &p.shared}) together |= rows->token | rows->head;
  return together % vector == 0 && p.dims % 2 == 0 &&
         (p.own_keys == p.width || p.own_keys == p.begin);
}

void rotary_heads_cpu(const RotaryHeads& p, int threads) {
  over_batch(p.tokens, threads, [&](std::int64_t token) {
    p.element == Element::f32 ? forward<Element::f32>(p, token) : forward<Element::bf16>(p, token);
  });
}

void rotary_heads_grad_cpu(const RotaryHeadsGrad& p, int threads) {
  over_batch(p.forward.tokens, threads, [&](std::int64_t token) {
    if (p.forward.element == Element::f32) {
      backward<Element::f32>(p, token);
    } else {
      backward<Element::bf16>(p, token);
    }
  });
}

}  // namespace subspace::kernels
