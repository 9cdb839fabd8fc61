#pragma once

#include "kernels/packs.h"
#include "kernels/small_svd_steps.h"

namespace subspace::kernels {
namespace {

/// Below this a sum of squares has lost digits; what it is the square of is nothing beside entries
/// of size 1.
constexpr double kNoLength = 1e-280;

/// For x of that first element and squared length: H x = (beta, 0, ..), H = I - tau v v^T with
/// v = x - beta e_1.
struct Reflection {
  double beta = 0, tau = 0;
  Reflection(double first, double square) {
    if (!(square > kNoLength)) return;
    beta = -__builtin_copysign(__builtin_sqrt(square), first);
    tau = 1 / (beta * (beta - first));
  }
};

/// Rows `first` .. + kRows of a step: row <- row - v z, w = tau row . u, row <- row - w u, and
/// sums += x row with x the row's element in `column`, which the next step needs.
template <int kRows>
inline void step_rows(const Bidiagonalisation& p, std::int64_t first, const double* v, double tau,
                      const double* u, std::int64_t column) {
  const std::int64_t begin = column / kPack * kPack;
  double* rows[kRows];
  Pack dots[kRows] = {}, a, z, s;
  for (int r = 0; r < kRows; ++r) rows[r] = p.a + (first + r) * p.width;
  for (std::int64_t j = begin; j < p.width; j += kPack) {
    load(z, p.row + j);
    load(s, u + j);
    for (int r = 0; r < kRows; ++r) {
      load(a, rows[r] + j);
      a -= v[r] * z;
      store(rows[r] + j, a);
      dots[r] += a * s;
    }
  }
  double w[kRows], x[kRows];
  for (int r = 0; r < kRows; ++r) {
    w[r] = tau * sum_of(dots[r]);
    x[r] = rows[r][column] - w[r] * u[column];
  }
  for (std::int64_t j = begin; j < p.width; j += kPack) {
    load(z, u + j);
    load(s, p.sums + j);
    for (int r = 0; r < kRows; ++r) {
      load(a, rows[r] + j);
      a -= w[r] * z;
      store(rows[r] + j, a);
      s += x[r] * a;
    }
    store(p.sums + j, s);
  }
}

inline void bidiagonalise(const Bidiagonalisation& p) {
  const auto clear = [&](double* x) {
    for (std::int64_t j = 0; j < p.width; ++j) x[j] = 0;
  };
  clear(p.sums);
  for (std::int64_t i = 0; i < p.rows; ++i) {
    const double* row = p.a + i * p.width;
    for (std::int64_t j = 0; j < p.width; ++j) p.sums[j] += row[0] * row[j];
  }
  for (std::int64_t k = 0; k < p.n; ++k) {
    double* v = p.left + k * p.rows;
    // Not p.sums[k]: where rounding is all that is left of a column, a length summed in another
    // order would make a reflection that is none.
    double length = 0;
    for (std::int64_t i = 0; i < p.rows; ++i) {
      v[i] = i < k ? 0 : p.a[i * p.width + k];
      length += v[i] * v[i];
    }
    const Reflection left(v[k], length);
    v[k] -= left.beta;
    p.d[k] = left.beta;
    p.left_tau[k] = left.tau;
    double* own = p.a + k * p.width;
    double* u = p.right + k * p.width;
    clear(u);
    clear(p.row);
    double square = 0;
    for (std::int64_t j = k + 1; j < p.n; ++j) {
      // v^T A = x^T A - beta (row k)
      p.row[j] = left.tau * (p.sums[j] - left.beta * own[j]);
      u[j] = own[j] - v[k] * p.row[j];
      square += u[j] * u[j];
    }
    if (k + 1 == p.n) {
      p.e[k] = p.right_tau[k] = 0;
      continue;
    }
    const Reflection right(u[k + 1], square);
    u[k + 1] -= right.beta;
    p.e[k] = right.beta;
    p.right_tau[k] = right.tau;
    clear(p.sums);
    std::int64_t i = k + 1;
    for (; i + 4 <= p.rows; i += 4) step_rows<4>(p, i, v + i, right.tau, u, k + 1);
    for (; i < p.rows; ++i) step_rows<1>(p, i, v + i, right.tau, u, k + 1);
  }
}

/// (I - tau v v^T) on kPacks packs of columns of X.
template <int kPacks>
inline void reflect_columns(const double* v, double tau, std::int64_t rows, double* x,
                            std::int64_t stride) {
  Pack sums[kPacks] = {}, a;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (int c = 0; c < kPacks; ++c) {
      load(a, x + i * stride + c * kPack);
      sums[c] += v[i] * a;
    }
  }
  for (int c = 0; c < kPacks; ++c) sums[c] *= tau;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (int c = 0; c < kPacks; ++c) {
      load(a, x + i * stride + c * kPack);
      a -= v[i] * sums[c];
      store(x + i * stride + c * kPack, a);
    }
  }
}

inline void reflect(const Reflections& p) {
  for (std::int64_t step = 0; step < p.n; ++step) {
    const std::int64_t k = p.forward ? step : p.n - 1 - step;
    const std::int64_t first = k + p.skip;
    if (p.tau[k] == 0 || first >= p.rows) continue;
    const double* v = p.v + k * p.stride + first;
    std::int64_t c = 0;
    for (; c + 4 * kPack <= p.columns; c += 4 * kPack) {
      reflect_columns<4>(v, p.tau[k], p.rows - first, p.x + first * p.columns + c, p.columns);
    }
    for (; c < p.columns; c += kPack) {
      reflect_columns<1>(v, p.tau[k], p.rows - first, p.x + first * p.columns + c, p.columns);
    }
  }
}

/// kPacks packs of columns of x. The row that a rotation shares with the one after it, above or
/// below, stays in registers: from memory it would be waited for.
template <int kPacks>
inline void rotate_packs(const SmallSvd::Rotation* turns, std::int64_t count, bool forward,
                         double* x, std::int64_t columns) {
  if (count == 0) return;
  Pack upper[kPacks], lower[kPacks], a;
  std::int64_t row = turns[forward ? 0 : count - 1].row;  // of upper; lower is of the next
  const auto write = [&](std::int64_t to, const Pack* from) {
#pragma GCC unroll 4
    for (int i = 0; i < kPacks; ++i) store(x + to * columns + i * kPack, from[i]);
  };
  const auto read = [&](std::int64_t from, Pack* to) {
#pragma GCC unroll 4
    for (int i = 0; i < kPacks; ++i) load(to[i], x + from * columns + i * kPack);
  };
  read(row, upper);
  read(row + 1, lower);
  for (std::int64_t t = 0; t < count; ++t) {
    const SmallSvd::Rotation& turn = turns[forward ? t : count - 1 - t];
    const double c = turn.c, s = forward ? turn.s : -turn.s;
    if (turn.row == row + 1) {
      write(row, upper);
#pragma GCC unroll 4
      for (int i = 0; i < kPacks; ++i) upper[i] = lower[i];
      read(turn.row + 1, lower);
    } else if (turn.row == row - 1) {
      write(row + 1, lower);
#pragma GCC unroll 4
      for (int i = 0; i < kPacks; ++i) lower[i] = upper[i];
      read(turn.row, upper);
    } else if (turn.row != row) {
      write(row, upper);
      write(row + 1, lower);
      read(turn.row, upper);
      read(turn.row + 1, lower);
    }
    row = turn.row;
#pragma GCC unroll 4
    for (int i = 0; i < kPacks; ++i) {
      a = upper[i];
      upper[i] = c * a + s * lower[i];
      lower[i] = c * lower[i] - s * a;
    }
  }
  write(row, upper);
  write(row + 1, lower);
}

inline void rotate(const SmallSvd::Rotation* turns, std::int64_t count, bool forward, double* x,
                   std::int64_t columns) {
  std::int64_t j = 0;
  for (; j + 4 * kPack <= columns; j += 4 * kPack) {
    rotate_packs<4>(turns, count, forward, x + j, columns);
  }
  const std::int64_t left = (columns - j) / kPack;
  if (left == 3) rotate_packs<3>(turns, count, forward, x + j, columns);
  if (left == 2) rotate_packs<2>(turns, count, forward, x + j, columns);
  if (left == 1) rotate_packs<1>(turns, count, forward, x + j, columns);
}

/// c, s with c f + s g = r, c g - s f = 0, in four matrices.
struct Turns {
  Pack c, s, r;
  Turns(const Pack& f, const Pack& g) {
    const Pack square = f * f + g * g, zero = {}, one = zero + 1;
    const Lanes none = g == 0, tiny = (square <= 1e-290) & ~none;
    r = square;
    for (int l = 0; l < kPack; ++l) r[l] = __builtin_sqrt(r[l]);
    // The squares have lost digits.
    if ((tiny[0] | tiny[1]) | (tiny[2] | tiny[3])) {
      for (int l = 0; l < kPack; ++l) {
        if (tiny[l]) r[l] = __builtin_hypot(f[l], g[l]);
      }
    }
    const Lanes nothing = r < __DBL_MIN__;
    const Pack inverse = one / (nothing ? one : r);
    c = (none | nothing) ? one : f * inverse;
    s = (none | nothing) ? zero : g * inverse;
    r = nothing ? zero : r;
    r = none ? f : r;
  }
};

/// x's element where `on`.
inline void store_where(const Lanes& on, const Pack& x, double* to) {
  Pack before;
  load(before, to);
  before = on ? x : before;
  store(to, before);
}

template <bool kShifted>
inline void sweep_down(const BidiagonalSweeps& p) {
  const Pack zero = {}, one = zero + 1;
  Lanes ends;
  std::int64_t most = 0;
  Pack shift, d, e, f = zero, g, next, above = zero;
  for (int l = 0; l < kPack; ++l) {
    ends[l] = p.steps[l];
    shift[l] = p.shift[l];
    most = p.steps[l] > most ? p.steps[l] : most;
  }
  load(d, p.d);
  load(e, p.e);
  // Unshifted: what cosine and sine of the last rotations were.
  Pack cosine = one, old_cosine = one, old_sine = zero;
  if (kShifted) {
    const Pack size = d < 0 ? -d : d, sign = d < 0 ? -one : one;
    f = (size - shift) * (sign + shift / d);
    g = e;
  }
  for (std::int64_t t = 0; t < most; ++t) {
    const Lanes here = Lanes{} + t, on = here < ends, last = here + 1 == ends;
    double *at = p.d + t * kPack, *beside = p.e + t * kPack, *turn = p.turns + t * 4 * kPack;
    load(next, at + kPack);
    if (kShifted) {
      const Turns right(f, g);
      above = right.r;
      f = right.c * d + right.s * e;
      e = right.c * e - right.s * d;
      g = right.s * next;
      next = right.c * next;
      const Turns left(f, g);
      if (t > 0) store_where(on, above, beside - kPack);
      store_where(on, left.r, at);
      f = left.c * e + left.s * next;
      d = left.c * next - left.s * e;
      store_where(last, d, at + kPack);
      store_where(last, f, beside);
      if (t + 1 < most) load(e, beside + kPack);
      g = left.s * e;
      e = left.c * e;
      store(turn, right.c);
      store(turn + kPack, right.s);
      store(turn + 2 * kPack, left.c);
      store(turn + 3 * kPack, left.s);
    } else {
      load(e, beside);
      const Turns right(d * cosine, e);
      if (t > 0) store_where(on, old_sine * right.r, beside - kPack);
      const Turns left(old_cosine * right.r, next * right.s);
      store_where(on, left.r, at);
      cosine = right.c, old_cosine = left.c, old_sine = left.s;
      d = next;
      store_where(last, d * cosine * old_cosine, at + kPack);
      store_where(last, d * cosine * old_sine, beside);
      store(turn, right.c);
      store(turn + kPack, right.s);
      store(turn + 2 * kPack, left.c);
      store(turn + 3 * kPack, left.s);
    }
  }
}

inline void bidiagonal_sweeps(const BidiagonalSweeps& p) {
  if (p.shifted) {
    sweep_down<true>(p);
  } else {
    sweep_down<false>(p);
  }
}

}  // namespace
}  // namespace subspace::kernels
