#include "kernels/ethos_reference.h"

#include <algorithm>
#include <cmath>

#include "kernels/gelu.h"

namespace subspace::kernels {
namespace {

/// A pair's sum as two doubles: exact for any two float32 numbers.
struct ExactPair {
  double sum;
  double rest;
  float score;
  std::int64_t index;
};

ExactPair exact_pair(float a, float b, std::int64_t index) {
  const double x = a;
  const double y = b;
  const double sum = x + y;
  const double other = sum - x;
  const double rest = std::isfinite(sum) ? (x - (sum - other)) + (y - other) : 0;
  return {sum, rest, a + b, index};
}

std::size_t at(std::int64_t row, std::int64_t width, std::int64_t column) {
  return static_cast<std::size_t>(row * width + column);
}

/// out [rows, columns] += a [rows, inner] b [inner, columns]; either factor may be transposed.
struct Matrix {
  const Doubles& values;
  std::int64_t stride;
  bool transposed = false;
  double operator()(std::int64_t row, std::int64_t column) const {
    return transposed ? values[at(column, stride, row)] : values[at(row, stride, column)];
  }
};

Doubles product(const Matrix& a, const Matrix& b, std::int64_t rows, std::int64_t inner,
                std::int64_t columns, double factor = 1) {
  Doubles out(static_cast<std::size_t>(rows * columns));
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      double sum = 0;
      for (std::int64_t k = 0; k < inner; ++k) sum += a(i, k) * b(k, j);
      out[at(i, columns, j)] = factor * sum;
    }
  }
  return out;
}

double dot(const double* a, const double* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void add(double weight, const double* a, double* sum, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) sum[i] += weight * a[i];
}

/// Calls f(flat selection, token, expert).
template <typename F>
void for_selections(const Routed& r, const F& f) {
  for (std::int64_t m = 0; m < r.tokens * r.selections; ++m) {
    f(static_cast<std::size_t>(m), m / r.selections, r.index[static_cast<std::size_t>(m)]);
  }
}

Doubles zeros(std::int64_t count) { return Doubles(static_cast<std::size_t>(count)); }

/// Hidden vectors before and after the gelu.
struct Table {
  Doubles pre;
  Doubles h;
};
Table generate(const EthosLayer& l) {
  Table table;
  table.pre = product({l.z, l.latent}, {l.w1, l.hidden}, l.routed.experts, l.latent, l.hidden);
  table.h = table.pre;
  for (double& value : table.h) value = gelu_exact(value).value;
  return table;
}

/// From dL/dh to the gradients of z and W1.
void generate_grad(const EthosLayer& l, const Doubles& pre, Doubles grad_h, EthosLayerGrad& out) {
  for (std::size_t i = 0; i < grad_h.size(); ++i) grad_h[i] *= gelu_exact(pre[i]).slope;
  const std::int64_t n = l.routed.experts;
  out.z = product({grad_h, l.hidden}, {l.w1, l.hidden, true}, n, l.hidden, l.latent);
  out.w1 = product({l.z, l.latent, true}, {grad_h, l.hidden}, l.latent, n, l.hidden);
}

Routed in_hidden_width(const EthosLayer& l) {
  Routed routed = l.routed;
  routed.width = l.hidden;
  return routed;
}

/// Both d-wide vectors of an expert.
struct Neuron {
  Doubles in;
  Doubles out;
};
Neuron neuron(const EthosLayer& l, const double* h) {
  const std::int64_t d = l.routed.width;
  Neuron n{zeros(d), zeros(d)};
  for (std::int64_t i = 0; i < d; ++i) {
    for (std::int64_t k = 0; k < l.hidden; ++k) {
      n.in[static_cast<std::size_t>(i)] += l.w_u[at(i, l.hidden, k)] * h[k];
      n.out[static_cast<std::size_t>(i)] += h[k] * l.w_v[at(k, d, i)];
    }
  }
  return n;
}

}  // namespace

void product_key_topk_reference(const float* s1, const float* s2, std::int64_t rows,
                                std::int64_t side, std::int64_t k, float* scores,
                                std::int64_t* index) {
  std::vector<ExactPair> pairs(static_cast<std::size_t>(side * side));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t a = 0; a < side; ++a) {
      for (std::int64_t b = 0; b < side; ++b) {
        pairs[at(a, side, b)] =
            exact_pair(s1[at(row, side, a)], s2[at(row, side, b)], a * side + b);
      }
    }
    const auto winners = pairs.begin() + k;
    std::partial_sort(pairs.begin(), winners, pairs.end(),
                      [](const ExactPair& a, const ExactPair& b) {
                        if (a.sum != b.sum) return a.sum > b.sum;
                        return a.rest != b.rest ? a.rest > b.rest : a.index < b.index;
                      });
    std::sort(pairs.begin(), winners, [](const ExactPair& a, const ExactPair& b) {
      return a.score != b.score ? a.score > b.score : a.index < b.index;
    });
    for (std::int64_t j = 0; j < k; ++j) {
      scores[at(row, k, j)] = pairs[static_cast<std::size_t>(j)].score;
      index[at(row, k, j)] = pairs[static_cast<std::size_t>(j)].index;
    }
  }
}

ExpertsForward stored_experts_reference(const Routed& r, const Doubles& x, const Doubles& down,
                                        const Doubles& up) {
  ExpertsForward out{zeros(r.tokens * r.width), zeros(r.tokens * r.selections)};
  for_selections(r, [&](std::size_t m, std::int64_t token, std::int64_t expert) {
    out.p[m] = dot(&down[at(expert, r.width, 0)], &x[at(token, r.width, 0)], r.width);
    add(gelu_exact(out.p[m]).value * r.scores[m], &up[at(expert, r.width, 0)],
        &out.acc[at(token, r.width, 0)], r.width);
  });
  return out;
}

ExpertsForward ethos_experts_reference(const Routed& r, const Doubles& xp, const Doubles& table) {
  return stored_experts_reference(r, xp, table, table);
}

ExpertsBackward stored_experts_grad_reference(const Routed& r, const Doubles& x,
                                              const Doubles& down, const Doubles& up,
                                              const Doubles& grad) {
  const std::int64_t count = r.tokens * r.selections;
  ExpertsBackward out{zeros(count),
                      zeros(count),
                      zeros(count),
                      zeros(r.tokens * r.width),
                      zeros(r.experts * r.width),
                      zeros(r.experts * r.width)};
  for_selections(r, [&](std::size_t m, std::int64_t token, std::int64_t expert) {
    const double* x_t = &x[at(token, r.width, 0)];
    const double* g_t = &grad[at(token, r.width, 0)];
    const auto row = at(expert, r.width, 0);
    const Gelu<double> gelu = gelu_exact(dot(&down[row], x_t, r.width));
    const double q = dot(&up[row], g_t, r.width);
    out.scores[m] = gelu.value * q;
    out.output[m] = gelu.value * r.scores[m];
    out.input[m] = gelu.slope * r.scores[m] * q;
    add(out.input[m], &down[row], &out.vectors[at(token, r.width, 0)], r.width);
    add(out.output[m], g_t, &out.table[row], r.width);
    add(out.input[m], x_t, &out.down[row], r.width);
  });
  return out;
}

ExpertsBackward ethos_experts_grad_reference(const Routed& r, const Doubles& xp,
                                             const Doubles& table, const Doubles& grad) {
  ExpertsBackward out = stored_experts_grad_reference(r, xp, table, table, grad);
  for (std::size_t i = 0; i < out.table.size(); ++i) out.table[i] += out.down[i];
  out.down.clear();
  return out;
}

Doubles ethos_layer_naive(const EthosLayer& l) {
  const Routed& r = l.routed;
  const Table table = generate(l);
  Doubles y = zeros(r.tokens * r.width);
  for_selections(r, [&](std::size_t m, std::int64_t token, std::int64_t expert) {
    const Neuron n = neuron(l, &table.h[at(expert, l.hidden, 0)]);
    const double p = dot(n.in.data(), &l.x[at(token, r.width, 0)], r.width);
    add(gelu_exact(p).value * r.scores[m] / static_cast<double>(l.heads), n.out.data(),
        &y[at(token, r.width, 0)], r.width);
  });
  return y;
}

EthosLayerGrad ethos_layer_naive_grad(const EthosLayer& l, const Doubles& grad_y) {
  const Routed& r = l.routed;
  const std::int64_t d = r.width;
  const Table table = generate(l);
  EthosLayerGrad out{
      zeros(r.tokens * d), zeros(r.tokens * r.selections), {}, {}, zeros(d * l.hidden),
      zeros(l.hidden * d)};
  Doubles grad_h = zeros(r.experts * l.hidden);
  for_selections(r, [&](std::size_t m, std::int64_t token, std::int64_t expert) {
    const double* x = &l.x[at(token, d, 0)];
    const double* dy = &grad_y[at(token, d, 0)];
    const double* h = &table.h[at(expert, l.hidden, 0)];
    double* dh = &grad_h[at(expert, l.hidden, 0)];
    const Neuron n = neuron(l, h);
    const Gelu<double> gelu = gelu_exact(dot(n.in.data(), x, d));
    const double da = dot(n.out.data(), dy, d) / static_cast<double>(l.heads);
    const double a = gelu.value * r.scores[m] / static_cast<double>(l.heads);
    const double dp = gelu.slope * r.scores[m] * da;
    out.scores[m] = gelu.value * da;
    add(dp, n.in.data(), &out.x[at(token, d, 0)], d);
    for (std::int64_t i = 0; i < d; ++i) {
      for (std::int64_t k = 0; k < l.hidden; ++k) {
        // The input vector's gradient is dp x, the output vector's a dy.
        out.w_u[at(i, l.hidden, k)] += dp * x[i] * h[k];
        out.w_v[at(k, d, i)] += h[k] * a * dy[i];
        dh[k] += l.w_u[at(i, l.hidden, k)] * dp * x[i] + l.w_v[at(k, d, i)] * a * dy[i];
      }
    }
  });
  generate_grad(l, table.pre, grad_h, out);
  return out;
}

Doubles ethos_layer_reordered(const EthosLayer& l) {
  const Routed& r = l.routed;
  const Doubles xp = product({l.x, r.width}, {l.w_u, l.hidden}, r.tokens, r.width, l.hidden);
  const Doubles acc = ethos_experts_reference(in_hidden_width(l), xp, generate(l).h).acc;
  return product({acc, l.hidden}, {l.w_v, r.width}, r.tokens, l.hidden, r.width,
                 1 / static_cast<double>(l.heads));
}

EthosLayerGrad ethos_layer_reordered_grad(const EthosLayer& l, const Doubles& grad_y) {
  const Routed& r = l.routed;
  const double scale = 1 / static_cast<double>(l.heads);
  const Table table = generate(l);
  const Routed hidden = in_hidden_width(l);
  const Doubles xp = product({l.x, r.width}, {l.w_u, l.hidden}, r.tokens, r.width, l.hidden);
  const Doubles acc = ethos_experts_reference(hidden, xp, table.h).acc;
  const Doubles grad_acc =
      product({grad_y, r.width}, {l.w_v, r.width, true}, r.tokens, r.width, l.hidden, scale);
  const ExpertsBackward back = ethos_experts_grad_reference(hidden, xp, table.h, grad_acc);
  EthosLayerGrad out;
  out.scores = back.scores;
  out.x = product({back.vectors, l.hidden}, {l.w_u, l.hidden, true}, r.tokens, l.hidden, r.width);
  out.w_u = product({l.x, r.width, true}, {back.vectors, l.hidden}, r.width, r.tokens, l.hidden);
  out.w_v = product({acc, l.hidden, true}, {grad_y, r.width}, l.hidden, r.tokens, r.width, scale);
  generate_grad(l, table.pre, back.table, out);
  return out;
}

}  // namespace subspace::kernels
