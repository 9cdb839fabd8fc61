#pragma once

#include "kernels/packs.h"
#include "kernels/small_eigenvalues_steps.h"

namespace subspace::kernels {
namespace {

/// y_i = row_i . v and z += v_i row_i for rows `first` .. + kRows.
template <int kRows>
inline void both_products(const Hessenberg& p, std::int64_t first, std::int64_t begin,
                          const double* v, double* y, double* z) {
  const double* rows[kRows];
  Pack dots[kRows] = {}, a, s, w;
  for (int r = 0; r < kRows; ++r) rows[r] = p.a + (first + r) * p.width;
  for (std::int64_t j = begin; j < p.width; j += kPack) {
    load(s, v + j);
    load(w, z + j);
    for (int r = 0; r < kRows; ++r) {
      load(a, rows[r] + j);
      dots[r] += a * s;
      w += v[first + r] * a;
    }
    store(z + j, w);
  }
  for (int r = 0; r < kRows; ++r) y[first + r] = sum_of(dots[r]);
}

/// row_i -= v_i z + y_i v for rows `first` .. + kRows.
template <int kRows>
inline void update_rows(const Hessenberg& p, std::int64_t first, std::int64_t begin,
                        const double* v, const double* y, const double* z) {
  Pack a, s, w;
  for (std::int64_t j = begin; j < p.width; j += kPack) {
    load(s, v + j);
    load(w, z + j);
    for (int r = 0; r < kRows; ++r) {
      double* at = p.a + (first + r) * p.width + j;
      load(a, at);
      a -= v[first + r] * w + y[first + r] * s;
      store(at, a);
    }
  }
}

inline void hessenberg(const Hessenberg& p) {
  double *v = p.scratch, *y = v + p.width, *z = y + p.width;
  for (std::int64_t k = 0; k + 2 < p.n; ++k) {
    double square = 0;
    for (std::int64_t i = 0; i < p.width; ++i) v[i] = z[i] = 0;
    for (std::int64_t i = k + 1; i < p.n; ++i) {
      v[i] = p.a[i * p.width + k];
      square += v[i] * v[i];
    }
    // A square this small has lost digits; beside entries of size 1 it is nothing.
    if (!(square > 1e-280)) {
      p.a[(k + 1) * p.width + k] = 0;
      continue;
    }
    const double beta = -__builtin_copysign(__builtin_sqrt(square), v[k + 1]);
    const double tau = 1 / (beta * (beta - v[k + 1]));
    v[k + 1] -= beta;
    const std::int64_t begin = (k + 1) / kPack * kPack;
    // v is zero up to row k, so all rows may be treated alike.
    std::int64_t i = 0;
    for (; i + 4 <= p.n; i += 4) both_products<4>(p, i, begin, v, y, z);
    for (; i < p.n; ++i) both_products<1>(p, i, begin, v, y, z);
    double inner = 0;
    for (i = k + 1; i < p.n; ++i) inner += v[i] * y[i];
    for (i = 0; i < p.n; ++i) y[i] *= tau;
    for (i = begin; i < p.width; ++i) z[i] = tau * (z[i] - tau * inner * v[i]);
    for (i = 0; i + 4 <= p.n; i += 4) update_rows<4>(p, i, begin, v, y, z);
    for (; i < p.n; ++i) update_rows<1>(p, i, begin, v, y, z);
    p.a[(k + 1) * p.width + k] = beta;
  }
  for (std::int64_t i = 2; i < p.n; ++i) {
    for (std::int64_t j = 0; j + 1 < i; ++j) p.a[i * p.width + j] = 0;
  }
}

/// I - tau (1, v, w)^T (1, v, w)
struct Three {
  double tau, v, w;
};

constexpr std::int64_t kSteps = 12;

/// Reflections of columns first .., one column further each, on four rows at once.
inline void four_rows(const FrancisSweep& p, std::int64_t row, std::int64_t first,
                      const Three* turns, std::int64_t count) {
  const std::int64_t begin = first / kPack * kPack, columns = first - begin + count + 2;
  Pack x[kSteps + 2 * kPack + 2];
  double* at = p.h + row * p.width + begin;
  for (std::int64_t j = 0; j < columns; j += kPack) {
    for (int r = 0; r < 4; ++r) load(x[j + r], at + r * p.width + j);
    transpose(x + j);
  }
  Pack* own = x + (first - begin);
  for (std::int64_t t = 0; t < count; ++t) {
    const Pack s = turns[t].tau * (own[t] + turns[t].v * own[t + 1] + turns[t].w * own[t + 2]);
    own[t] -= s;
    own[t + 1] -= turns[t].v * s;
    own[t + 2] -= turns[t].w * s;
  }
  for (std::int64_t j = 0; j < columns; j += kPack) {
    transpose(x + j);
    for (int r = 0; r < 4; ++r) store(at + r * p.width + j, x[j + r]);
  }
}

inline void one_row(double* at, const Three& turn) {
  const double s = turn.tau * (at[0] + turn.v * at[1] + turn.w * at[2]);
  at[0] -= s;
  at[1] -= turn.v * s;
  at[2] -= turn.w * s;
}

inline void francis_sweep(const FrancisSweep& p) {
  Three turns[kSteps];
  double x = p.x, y = p.y, z = p.z;
  for (std::int64_t block = p.low; block < p.high; block += kSteps) {
    const std::int64_t end = block + kSteps < p.high ? block + kSteps : p.high;
    for (std::int64_t k = block; k < end; ++k) {
      // The last one is of two rows: a third, which is beyond, has weight zero.
      const bool two = k + 2 > p.high;
      double* rows = p.h + k * p.width;
      if (k > p.low) {
        x = rows[k - 1], y = rows[p.width + k - 1];
        z = two ? 0 : rows[2 * p.width + k - 1];
      }
      if (two) z = 0;
      Three& turn = turns[k - block];
      const double size = __builtin_fabs(x) + __builtin_fabs(y) + __builtin_fabs(z);
      if (size == 0) {
        turn = {0, 0, 0};
        continue;
      }
      const double a = x / size, b = y / size, c = z / size;
      const double beta = -__builtin_copysign(__builtin_sqrt(a * a + b * b + c * c), a);
      const double inverse = 1 / (a - beta);
      turn = {(beta - a) / beta, b * inverse, c * inverse};
      if (k > p.low) {
        rows[k - 1] = beta * size;
        rows[p.width + k - 1] = 0;
        if (!two) rows[2 * p.width + k - 1] = 0;
      }
      double* third = two ? rows + p.width : rows + 2 * p.width;
      Pack r0, r1, r2, s;
      std::int64_t j = k;
      for (; j % kPack != 0 && j <= p.high; ++j) {
        const double t =
            turn.tau * (rows[j] + turn.v * rows[p.width + j] + (two ? 0 : turn.w * third[j]));
        rows[j] -= t;
        rows[p.width + j] -= turn.v * t;
        if (!two) third[j] -= turn.w * t;
      }
      // Whole packs, beyond `high` too: what stands there is of no more use.
      for (; j <= p.high; j += kPack) {
        load(r0, rows + j);
        load(r1, rows + p.width + j);
        if (two) {
          s = turn.tau * (r0 + turn.v * r1);
        } else {
          load(r2, third + j);
          s = turn.tau * (r0 + turn.v * r1 + turn.w * r2);
          store(third + j, r2 - turn.w * s);
        }
        store(rows + j, r0 - s);
        store(rows + p.width + j, r1 - turn.v * s);
      }
      const std::int64_t last = k + 3 < p.high ? k + 3 : p.high;
      for (std::int64_t i = block; i <= last; ++i) one_row(p.h + i * p.width + k, turn);
    }
    // Rows above are touched by no later reflection from the left.
    std::int64_t i = p.low;
    for (; i + 4 <= block; i += 4) four_rows(p, i, block, turns, end - block);
    for (; i < block; ++i) {
      for (std::int64_t k = block; k < end; ++k) one_row(p.h + i * p.width + k, turns[k - block]);
    }
  }
}

}  // namespace
}  // namespace subspace::kernels
