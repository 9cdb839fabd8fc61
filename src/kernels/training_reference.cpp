#include "kernels/training_reference.h"

#include <algorithm>
#include <cmath>

namespace subspace::kernels {

RmsNormResult rms_norm_reference(const Reals& x, const Reals& delta, const Reals& bias,
                                 const Reals& weight, double eps) {
  const std::size_t width = weight.size(), rows = x.size() / width;
  RmsNormResult out{x, Reals(x.size()), Reals(rows)};
  for (std::size_t row = 0; row < rows; ++row) {
    double squares = 0;
    for (std::size_t i = 0; i < width; ++i) {
      double& s = out.sum[row * width + i];
      if (!delta.empty()) s += delta[row * width + i];
      if (!bias.empty()) s += bias[i];
      squares += s * s;
    }
    const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + eps);
    out.scale[row] = scale;
    for (std::size_t i = 0; i < width; ++i) {
      out.y[row * width + i] = scale * out.sum[row * width + i] * weight[i];
    }
  }
  return out;
}

RmsNormGradResult rms_norm_grad_reference(const Reals& grad, const Reals& grad_sum, const Reals& s,
                                          const Reals& weight, double eps) {
  const std::size_t width = weight.size(), rows = s.size() / width;
  const RmsNormResult forward = rms_norm_reference(s, {}, {}, weight, eps);
  RmsNormGradResult out{Reals(s.size()), Reals(width), Reals(width)};
  for (std::size_t row = 0; row < rows; ++row) {
    const double scale = forward.scale[row];
    for (std::size_t i = 0; i < width; ++i) {
      // The whole Jacobian's row: dy_j/ds_i = w_j (scale [i = j] - scale^3 s_i s_j / width).
      double sum = grad_sum.empty() ? 0 : grad_sum[row * width + i];
      for (std::size_t j = 0; j < width; ++j) {
        const double s_i = s[row * width + i], s_j = s[row * width + j];
        const double slope =
            (i == j ? scale : 0) - scale * scale * scale * s_i * s_j / static_cast<double>(width);
        sum += grad[row * width + j] * weight[j] * slope;
      }
      out.grad_s[row * width + i] = sum;
      out.bias[i] += sum;
      out.weight[i] += grad[row * width + i] * scale * s[row * width + i];
    }
  }
  return out;
}

MomentsResult column_moments_reference(const Reals& x, std::int64_t columns) {
  const auto width = static_cast<std::size_t>(columns);
  const std::size_t rows = x.size() / width;
  MomentsResult out{Reals(width), Reals(width)};
  for (std::size_t i = 0; i < x.size(); ++i) out.mean[i % width] += x[i];
  for (double& mean : out.mean) mean /= static_cast<double>(rows);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double apart = x[i] - out.mean[i % width];
    out.variance[i % width] += apart * apart / static_cast<double>(rows);
  }
  return out;
}

BatchNormResult batch_norm_reference(const Reals& x, const MomentsResult& moments,
                                     const Reals& weight, const Reals& bias, const Reals& grad,
                                     double eps, bool of_batch) {
  const std::size_t width = weight.size(), rows = x.size() / width;
  BatchNormResult out{Reals(x.size()), Reals(x.size()), Reals(width), Reals(width)};
  for (std::size_t c = 0; c < width; ++c) {
    const double r = 1 / std::sqrt(moments.variance[c] + eps);
    const auto normal = [&](std::size_t row) { return (x[row * width + c] - moments.mean[c]) * r; };
    for (std::size_t row = 0; row < rows; ++row) {
      out.y[row * width + c] = normal(row) * weight[c] + bias[c];
      out.bias[c] += grad[row * width + c];
      out.weight[c] += grad[row * width + c] * normal(row);
    }
    for (std::size_t to = 0; to < rows; ++to) {
      // dy_from/dx_to = w r ([from = to] - (1 + n_from n_to) / rows): the mean and the variance
      // move with x_to.
      double sum = grad[to * width + c];
      for (std::size_t from = 0; of_batch && from < rows; ++from) {
        sum -= grad[from * width + c] * (1 + normal(from) * normal(to)) / static_cast<double>(rows);
      }
      out.grad_x[to * width + c] = weight[c] * r * sum;
    }
  }
  return out;
}

Reals swiglu_reference(const Reals& up, const Reals& bias) {
  const std::size_t width = bias.size() / 2, rows = up.size() / (2 * width);
  Reals y(rows * width);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < width; ++i) {
      const double a = up[row * 2 * width + i] + bias[i];
      const double b = up[row * 2 * width + width + i] + bias[width + i];
      y[row * width + i] = a / (1 + std::exp(-a)) * b;
    }
  }
  return y;
}

SwigluGradResult swiglu_grad_reference(const Reals& grad, const Reals& up, const Reals& bias) {
  const std::size_t width = bias.size() / 2, rows = up.size() / (2 * width);
  SwigluGradResult out{Reals(up.size()), Reals(bias.size())};
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < width; ++i) {
      const std::size_t gate = row * 2 * width + i, value = gate + width;
      const double a = up[gate] + bias[i], b = up[value] + bias[width + i];
      const double e = std::exp(-a), g = grad[row * width + i];
      out.up[gate] = g * b * (1 + e + a * e) / ((1 + e) * (1 + e));
      out.up[value] = g * a / (1 + e);
      out.bias[i] += out.up[gate];
      out.bias[width + i] += out.up[value];
    }
  }
  return out;
}

Reals turned_reference(const Reals& head, const Reals& cos, const Reals& sin, std::int64_t begin,
                       bool interleaved, bool back) {
  const std::size_t width = head.size(), half = cos.size(), first = static_cast<std::size_t>(begin);
  // The whole matrix of the turn, row i the coordinate that comes out.
  Reals matrix(width * width);
  for (std::size_t i = 0; i < width; ++i) {
    if (i < first || i >= first + 2 * half) matrix[i * width + i] = 1;
  }
  for (std::size_t i = 0; i < half; ++i) {
    const std::size_t a = first + (interleaved ? 2 * i : i);
    const std::size_t b = interleaved ? a + 1 : a + half;
    matrix[(first + i) * width + a] = cos[i];
    matrix[(first + i) * width + b] = -sin[i];
    matrix[(first + half + i) * width + a] = sin[i];
    matrix[(first + half + i) * width + b] = cos[i];
  }
  Reals out(width);
  for (std::size_t i = 0; i < width; ++i) {
    for (std::size_t j = 0; j < width; ++j) {
      out[i] += (back ? matrix[j * width + i] : matrix[i * width + j]) * head[j];
    }
  }
  return out;
}

AttentionResult attention_reference(const Reals& q, const Reals& k, const Reals& v,
                                    const Reals& grad, std::int64_t length, double scale,
                                    bool causal) {
  const auto n = static_cast<std::size_t>(length);
  const std::size_t width = q.size() / n;
  AttentionResult r{Reals(n * n),    Reals(q.size()), Reals(n),       Reals(n * n),
                    Reals(q.size()), Reals(q.size()), Reals(q.size())};
  const auto dot = [width](const Reals& a, std::size_t i, const Reals& b, std::size_t j) {
    double sum = 0;
    for (std::size_t c = 0; c < width; ++c) sum += a[i * width + c] * b[j * width + c];
    return sum;
  };
  for (std::size_t t = 0; t < n; ++t) {
    const std::size_t seen = causal ? t + 1 : n;
    double sum = 0;
    for (std::size_t s = 0; s < seen; ++s) sum += std::exp(scale * dot(q, t, k, s));
    r.lse[t] = std::log(sum);
    for (std::size_t s = 0; s < seen; ++s) {
      r.p[t * n + s] = std::exp(scale * dot(q, t, k, s) - r.lse[t]);
      for (std::size_t c = 0; c < width; ++c) {
        r.out[t * width + c] += r.p[t * n + s] * v[s * width + c];
      }
    }
    const double shift = dot(grad, t, r.out, t);
    for (std::size_t s = 0; s < seen; ++s) {
      const double slope = r.p[t * n + s] * (dot(grad, t, v, s) - shift);
      r.slope[t * n + s] = slope;
      for (std::size_t c = 0; c < width; ++c) {
        r.q[t * width + c] += scale * slope * k[s * width + c];
        r.k[s * width + c] += scale * slope * q[t * width + c];
        r.v[s * width + c] += r.p[t * n + s] * grad[t * width + c];
      }
    }
  }
  return r;
}

CrossEntropyResult cross_entropy_reference(const Reals& logits,
                                           const std::vector<std::int64_t>& targets,
                                           std::int64_t columns, std::int64_t stride,
                                           double factor) {
  CrossEntropyResult out{Reals(targets.size()), Reals(logits.size())};
  for (std::size_t row = 0; row < targets.size(); ++row) {
    if (targets[row] < 0) continue;
    const double* x = logits.data() + row * static_cast<std::size_t>(stride);
    double* gradient = out.gradient.data() + row * static_cast<std::size_t>(stride);
    const double most = *std::max_element(x, x + columns);
    double sum = 0;
    for (std::int64_t c = 0; c < columns; ++c) sum += std::exp(x[c] - most);
    out.loss[row] = most + std::log(sum) - x[targets[row]];
    for (std::int64_t c = 0; c < columns; ++c) {
      gradient[c] = factor * (std::exp(x[c] - most) / sum - (c == targets[row] ? 1 : 0));
    }
  }
  return out;
}

}  // namespace subspace::kernels
