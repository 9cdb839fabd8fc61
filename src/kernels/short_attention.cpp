#include "kernels/short_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/element_rows.h"
#include "kernels/over_batch.h"

namespace subspace::kernels {
namespace {

using V = Values<Element::bf16>;
using Head = std::vector<float>;  // [length, 32]

/// A head of an operand without gaps.
Head head_of(const ShortAttention& p, const void* data, std::int64_t row, std::int64_t head) {
  Head out(static_cast<std::size_t>(p.length * kShortHead));
  for (std::int64_t t = 0; t < p.length; ++t) {
    const std::int64_t from = ((row * p.length + t) * p.heads + head) * kShortHead;
    for (std::int64_t i = 0; i < kShortHead; ++i) {
      out[static_cast<std::size_t>(t * kShortHead + i)] = V::load(data, from + i);
    }
  }
  return out;
}

Head values_of(const ShortAttention& p, std::int64_t row, std::int64_t head) {
  Head out(static_cast<std::size_t>(p.length * kShortHead));
  for (std::int64_t t = 0; t < p.length; ++t) {
    const std::int64_t from = (row * p.length + t) * p.v.token + head * p.v.head;
    for (std::int64_t i = 0; i < kShortHead; ++i) {
      out[static_cast<std::size_t>(t * kShortHead + i)] = V::load(p.v.data, from + i);
    }
  }
  return out;
}

void put_head(const ShortAttention& p, void* data, std::int64_t row, std::int64_t head,
              const Head& values) {
  for (std::int64_t t = 0; t < p.length; ++t) {
    const std::int64_t to = ((row * p.length + t) * p.heads + head) * kShortHead;
    for (std::int64_t i = 0; i < kShortHead; ++i) {
      V::store(data, to + i, values[static_cast<std::size_t>(t * kShortHead + i)]);
    }
  }
}

const float* at(const Head& head, std::int64_t t) {
  return head.data() + static_cast<std::size_t>(t * kShortHead);
}
float* at(Head& head, std::int64_t t) {
  return head.data() + static_cast<std::size_t>(t * kShortHead);
}

float dot(const float* a, const float* b) {
  float sum = 0;
  for (std::int64_t i = 0; i < kShortHead; ++i) sum += a[i] * b[i];
  return sum;
}

void add(float* to, float factor, const float* what) {
  for (std::int64_t i = 0; i < kShortHead; ++i) to[i] += factor * what[i];
}

void forward(const ShortAttention& p, std::int64_t row, std::int64_t head) {
  const Head q = head_of(p, p.q, row, head), k = head_of(p, p.k, row, head);
  const Head v = values_of(p, row, head);
  Head out(q.size(), 0.0f);
  std::vector<float> scores(static_cast<std::size_t>(p.length));
  for (std::int64_t t = 0; t < p.length; ++t) {
    const std::int64_t seen = p.causal ? t + 1 : p.length;
    float most = -std::numeric_limits<float>::infinity();
    for (std::int64_t s = 0; s < seen; ++s) {
      most =
          std::max(most, scores[static_cast<std::size_t>(s)] = p.scale * dot(at(q, t), at(k, s)));
    }
    float sum = 0;
    for (std::int64_t s = 0; s < seen; ++s) {
      const float weight = std::exp(scores[static_cast<std::size_t>(s)] - most);
      sum += weight;
      add(at(out, t), V::rounded(weight), at(v, s));
    }
    for (std::int64_t i = 0; i < kShortHead; ++i) at(out, t)[i] /= sum;
    p.lse[(row * p.heads + head) * p.length + t] = most + std::log(sum);
  }
  put_head(p, p.out, row, head, out);
}

void backward(const ShortAttentionGrad& g, std::int64_t row, std::int64_t head) {
  const ShortAttention& p = g.forward;
  const Head q = head_of(p, p.q, row, head), k = head_of(p, p.k, row, head);
  const Head v = values_of(p, row, head), out = head_of(p, p.out, row, head);
  const Head grad = head_of(p, g.grad, row, head);
  Head grad_q(q.size(), 0.0f), grad_k(q.size(), 0.0f), grad_v(q.size(), 0.0f);
  for (std::int64_t t = 0; t < p.length; ++t) {
    const float shift = dot(at(grad, t), at(out, t));
    const float lse = p.lse[(row * p.heads + head) * p.length + t];
    for (std::int64_t s = 0; s < (p.causal ? t + 1 : p.length); ++s) {
      const float weight = std::exp(p.scale * dot(at(q, t), at(k, s)) - lse);
      const float slope = V::rounded(weight * (dot(at(grad, t), at(v, s)) - shift));
      add(at(grad_q, t), p.scale * slope, at(k, s));
      add(at(grad_k, s), p.scale * slope, at(q, t));
      add(at(grad_v, s), V::rounded(weight), at(grad, t));
    }
  }
  put_head(p, g.grad_q, row, head, grad_q);
  put_head(p, g.grad_k, row, head, grad_k);
  put_head(p, g.grad_v, row, head, grad_v);
}

}  // namespace

void short_attention_cpu(const ShortAttention& p, int threads) {
  over_batch(p.rows * p.heads, threads,
             [&](std::int64_t i) { forward(p, i / p.heads, i % p.heads); });
}

void short_attention_grad_cpu(const ShortAttentionGrad& p, int threads) {
  over_batch(p.forward.rows * p.forward.heads, threads,
             [&](std::int64_t i) { backward(p, i / p.forward.heads, i % p.forward.heads); });
}

}  // namespace subspace::kernels
