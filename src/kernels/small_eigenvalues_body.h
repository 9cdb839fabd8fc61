#pragma once

#include "kernels/packs.h"
#include "kernels/small_eigenvalues_steps.h"

namespace subspace::kernels {
namespace {

/// Reflections that are gathered before the rest of the matrix takes them.
constexpr std::int64_t kPanel = kHessenbergPanel;

/// Of a panel's reflections: V and Y = A V T, a row each, with Q = I - V T V^T.
struct Panel {
  std::int64_t first = 0, count = 0;                ///< its columns of A
  double *v = nullptr, *y = nullptr, *w = nullptr;  ///< [kPanel, width]
  double *column = nullptr, *kept = nullptr;        ///< [width], [kPack, width]
  double *t = nullptr, *u = nullptr;                ///< [kPanel, kPanel], upper; [kPanel]

  Panel(const Hessenberg& p, std::int64_t begin)
      : first(begin),
        v(p.scratch),
        y(v + kPanel * p.width),
        w(y + kPanel * p.width),
        column(w + kPanel * p.width),
        kept(column + p.width),
        t(kept + kPack * p.width),
        u(t + kPanel * kPanel) {
    count = p.n - 2 - first < kPanel ? p.n - 2 - first : kPanel;
  }
};

inline void subtract(double* x, const double* y, double s, std::int64_t n) {
  Pack a, b;
  for (std::int64_t j = 0; j < n; j += kPack) {
    load(a, x + j);
    load(b, y + j);
    store(x + j, a - s * b);
  }
}

/// y_i = row_i . v, `kRows` rows from `row` on; v is zero before `begin`.
template <int kRows>
inline void row_products(const Hessenberg& p, std::int64_t row, std::int64_t begin, const double* v,
                         double* y) {
  const double* rows = p.a + row * p.width;
  Pack dots[kRows] = {}, a, s;
  for (std::int64_t j = begin; j < p.width; j += kPack) {
    load(s, v + j);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      load(a, rows + r * p.width + j);
      dots[r] += a * s;
    }
  }
  for (int r = 0; r < kRows; ++r) y[row + r] = sum_of(dots[r]);
}

/// Rows `row` .. + kRows of A from column `begin` on: row_i -= sum_j c[i + j width] b_j.
template <int kRows>
inline void subtract_products(const Hessenberg& p, std::int64_t row, std::int64_t begin,
                              const double* c, const double* b, std::int64_t count) {
  constexpr int kWide = 2;
  double* rows = p.a + row * p.width;
  std::int64_t j = begin;
  for (; j + kWide * kPack <= p.width; j += kWide * kPack) {
    Pack sums[kRows][kWide], x;
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kWide; ++i) load(sums[r][i], rows + r * p.width + j + i * kPack);
    }
    for (std::int64_t l = 0; l < count; ++l) {
#pragma GCC unroll 4
      for (int i = 0; i < kWide; ++i) {
        load(x, b + l * p.width + j + i * kPack);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r][i] -= c[l * p.width + row + r] * x;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kWide; ++i) store(rows + r * p.width + j + i * kPack, sums[r][i]);
    }
  }
  for (; j < p.width; j += kPack) {
    for (int r = 0; r < kRows; ++r) {
      Pack sum, x;
      load(sum, rows + r * p.width + j);
      for (std::int64_t l = 0; l < count; ++l) {
        load(x, b + l * p.width + j);
        sum -= c[l * p.width + row + r] * x;
      }
      store(rows + r * p.width + j, sum);
    }
  }
}

/// w_j = sum_i v_j[i] row_i in kPacks packs from column `j` on, kEach of the panel's reflections.
template <int kEach, int kPacks>
inline void gather_packs(const Hessenberg& p, const Panel& q, std::int64_t l, std::int64_t j) {
  Pack sums[kEach][kPacks] = {}, x[kPacks];
  for (std::int64_t i = q.first + 1; i < p.n; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < kPacks; ++c) load(x[c], p.a + i * p.width + j + c * kPack);
#pragma GCC unroll 4
    for (int r = 0; r < kEach; ++r) {
      const double s = q.v[(l + r) * p.width + i];
#pragma GCC unroll 4
      for (int c = 0; c < kPacks; ++c) sums[r][c] += s * x[c];
    }
  }
  for (int r = 0; r < kEach; ++r) {
    for (int c = 0; c < kPacks; ++c) store(q.w + (l + r) * p.width + j + c * kPack, sums[r][c]);
  }
}

template <int kEach>
inline void gather_rows(const Hessenberg& p, const Panel& q, std::int64_t l, std::int64_t begin) {
  std::int64_t j = begin;
  for (; j + 2 * kPack <= p.width; j += 2 * kPack) gather_packs<kEach, 2>(p, q, l, j);
  for (; j < p.width; j += kPack) gather_packs<kEach, 1>(p, q, l, j);
}

/// Column k of A as the reflections before it leave it, its own reflection, and that one's v, y
/// and column of T.
inline void panel_column(const Hessenberg& p, const Panel& q, std::int64_t l) {
  const std::int64_t k = q.first + l, width = p.width;
  double *b = q.column, *v = q.v + l * width, *y = q.y + l * width;
  for (std::int64_t i = 0; i < width; ++i) {
    b[i] = i < p.n ? p.a[i * width + k] : 0;
    v[i] = y[i] = 0;
  }
  for (std::int64_t j = 0; j < l; ++j) subtract(b, q.y + j * width, q.v[j * width + k], width);
  for (std::int64_t j = 0; j < l; ++j) q.u[j] = packs_dot<2>(q.v + j * width, b, width);
  for (std::int64_t j = l; j-- > 0;) {
    double sum = 0;
    for (std::int64_t i = 0; i <= j; ++i) sum += q.t[i * kPanel + j] * q.u[i];
    q.u[j] = sum;
  }
  for (std::int64_t j = 0; j < l; ++j) subtract(b, q.v + j * width, q.u[j], width);

  double square = 0;
  for (std::int64_t i = k + 1; i < p.n; ++i) square += b[i] * b[i];
  double beta = 0, tau = 0;
  // A square this small has lost digits; beside entries of size 1 it is nothing.
  if (square > 1e-280) {
    beta = -__builtin_copysign(__builtin_sqrt(square), b[k + 1]);
    tau = 1 / (beta * (beta - b[k + 1]));
    for (std::int64_t i = k + 1; i < p.n; ++i) v[i] = b[i];
    v[k + 1] -= beta;
  }
  for (std::int64_t i = 0; i <= k; ++i) p.a[i * width + k] = b[i];
  p.a[(k + 1) * width + k] = beta;
  for (std::int64_t i = k + 2; i < p.n; ++i) p.a[i * width + k] = 0;

  std::int64_t row = 0;
  const std::int64_t begin = (k + 1) / kPack * kPack;
  for (; row + 4 <= p.n; row += 4) row_products<4>(p, row, begin, v, y);
  for (; row < p.n; ++row) row_products<1>(p, row, begin, v, y);
  for (std::int64_t j = 0; j < l; ++j) q.u[j] = packs_dot<2>(q.v + j * width, v, width);
  for (std::int64_t j = 0; j < l; ++j) subtract(y, q.y + j * width, q.u[j], width);
  for (std::int64_t i = 0; i < width; ++i) y[i] *= tau;
  for (std::int64_t i = 0; i < l; ++i) {
    double sum = 0;
    for (std::int64_t j = i; j < l; ++j) sum += q.t[i * kPanel + j] * q.u[j];
    q.t[i * kPanel + l] = -tau * sum;
  }
  q.t[l * kPanel + l] = tau;
}

/// Columns behind the panel: A <- Q^T (A - Y V^T).
inline void apply_panel(const Hessenberg& p, const Panel& q) {
  const std::int64_t end = q.first + q.count, width = p.width;
  const std::int64_t begin = end / kPack * kPack;
  // Packs are whole; those of the panel's columns that stand in the first are done with.
  for (std::int64_t c = begin; c < end; ++c) {
    for (std::int64_t i = 0; i < p.n; ++i) q.kept[(c - begin) * width + i] = p.a[i * width + c];
  }
  std::int64_t i = 0;
  for (; i + 4 <= p.n; i += 4) subtract_products<4>(p, i, begin, q.y, q.v, q.count);
  for (; i < p.n; ++i) subtract_products<1>(p, i, begin, q.y, q.v, q.count);
  std::int64_t l = 0;
  for (; l + 4 <= q.count; l += 4) gather_rows<4>(p, q, l, begin);
  for (; l < q.count; ++l) gather_rows<1>(p, q, l, begin);
  // W <- T^T W
  for (l = q.count; l-- > 0;) {
    double* w = q.w + l * width;
    const double own = q.t[l * kPanel + l];
    for (std::int64_t j = begin; j < width; ++j) w[j] *= own;
    for (std::int64_t m = 0; m < l; ++m) {
      subtract(w + begin, q.w + m * width + begin, -q.t[m * kPanel + l], width - begin);
    }
  }
  i = q.first + 1;
  for (; i + 4 <= p.n; i += 4) subtract_products<4>(p, i, begin, q.v, q.w, q.count);
  for (; i < p.n; ++i) subtract_products<1>(p, i, begin, q.v, q.w, q.count);
  for (std::int64_t c = begin; c < end; ++c) {
    for (i = 0; i < p.n; ++i) p.a[i * width + c] = q.kept[(c - begin) * width + i];
  }
}

inline void hessenberg(const Hessenberg& p) {
  for (std::int64_t first = 0; first + 2 < p.n; first += kPanel) {
    const Panel panel(p, first);
    for (std::int64_t l = 0; l < panel.count; ++l) panel_column(p, panel, l);
    apply_panel(p, panel);
  }
}

/// I - tau (1, v, w)^T (1, v, w) of each matrix.
struct Three {
  Pack tau, v, w;
};

/// Reflections whose windows are left before what is beyond them follows.
constexpr std::int64_t kSteps = 12;

/// `count` reflections, each of three elements `step` apart and one element further than the one
/// before, on kLines lines that are `apart`: what they share stays in registers.
template <int kLines>
inline void turn_lines(const Three* turns, std::int64_t count, double* at, std::int64_t step,
                       std::int64_t apart) {
  Pack x[kLines], y[kLines], z[kLines];
#pragma GCC unroll 4
  for (int i = 0; i < kLines; ++i) {
    load(x[i], at + i * apart);
    load(y[i], at + i * apart + step);
  }
  for (std::int64_t t = 0; t < count; ++t, at += step) {
    const Pack tau = turns[t].tau, v = turns[t].v, w = turns[t].w;
#pragma GCC unroll 4
    for (int i = 0; i < kLines; ++i) {
      load(z[i], at + i * apart + 2 * step);
      const Pack s = tau * (x[i] + v * y[i] + w * z[i]);
      x[i] -= s;
      store(at + i * apart, x[i]);
      x[i] = y[i] - v * s;
      y[i] = z[i] - w * s;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLines; ++i) {
    store(at + i * apart, x[i]);
    store(at + i * apart + step, y[i]);
  }
}

inline void turn_all_lines(const Three* turns, std::int64_t count, double* at, std::int64_t step,
                           std::int64_t apart, std::int64_t lines) {
  std::int64_t i = 0;
  for (; i + 4 <= lines; i += 4) turn_lines<4>(turns, count, at + i * apart, step, apart);
  for (; i < lines; ++i) turn_lines<1>(turns, count, at + i * apart, step, apart);
}

inline void absolute(Pack& x) { x = x < 0 ? -x : x; }

/// The reflection that takes x, y, z to beta, 0, 0, in matrices where `on`; else none.
inline void make_turn(const Lanes& on, const Pack& x, const Pack& y, const Pack& z, Three& turn,
                      Pack& beta) {
  Pack sizes[3] = {x, y, z};
  for (Pack& size : sizes) absolute(size);
  const Pack one = Pack{} + 1, size = sizes[0] + sizes[1] + sizes[2];
  const Lanes there = on & (size > 0);
  const Pack inverse = one / (there ? size : one);
  const Pack a = x * inverse, b = y * inverse, c = z * inverse;
  Pack length = a * a + b * b + c * c;
  length = there ? length : one;
  for (int l = 0; l < kPack; ++l) length[l] = __builtin_sqrt(length[l]);
  const Pack short_beta = a < 0 ? length : -length;
  const Pack below = one / (a - short_beta);
  const Pack zero = {};
  turn.tau = there ? (short_beta - a) / short_beta : zero;
  turn.v = there ? b * below : zero;
  turn.w = there ? c * below : zero;
  beta = there ? short_beta * size : zero;
}

inline void francis_sweeps(const FrancisSweeps& p) {
  Three turns[kSteps];
  const std::int64_t row = p.width * kPack;
  std::int64_t low = p.low[0], high = p.high[0];
  Lanes lows, highs;
  for (int l = 0; l < kPack; ++l) {
    low = p.low[l] < low ? p.low[l] : low;
    high = p.high[l] > high ? p.high[l] : high;
    lows[l] = p.low[l], highs[l] = p.high[l];
  }
  const Pack zero = {};
  Pack x, y, z, beta, first[3];
  for (int i = 0; i < 3; ++i) load(first[i], p.first + i * kPack);
  for (std::int64_t block = low; block < high; block += kSteps) {
    const std::int64_t end = block + kSteps < high ? block + kSteps : high;
    // The first column that no reflection of this block from the right reaches.
    const std::int64_t columns = end + 2;
    for (std::int64_t k = block; k < end; ++k) {
      double* own = p.h + k * row + k * kPack;
      const Lanes here = Lanes{} + k;
      const Lanes begins = here == lows, on = (here >= lows) & (here < highs);
      x = first[0], y = first[1], z = first[2];
      if (k > low) {
        double* before = own - kPack;
        Pack a, b, c;
        load(a, before);
        load(b, before + row);
        load(c, before + 2 * row);
        x = begins ? x : a, y = begins ? y : b, z = begins ? z : c;
        // The last one is of two rows: a third, which is beyond, has weight zero.
        z = here + 2 > highs ? zero : z;
        Three& turn = turns[k - block];
        make_turn(on, x, y, z, turn, beta);
        const Lanes inside = on & ~begins;
        // Where all is zero already, nothing is reflected.
        store(before, inside ? beta : a);
        store(before + row, inside ? zero : b);
        store(before + 2 * row, (inside & (here + 2 <= highs)) ? zero : c);
      } else {
        z = here + 2 > highs ? zero : z;
        make_turn(on, x, y, z, turns[k - block], beta);
      }
      const Three& turn = turns[k - block];
      turn_all_lines(&turn, 1, own, row, kPack, columns - k);
      const std::int64_t to = k + 3 < high ? k + 3 : high;
      turn_all_lines(&turn, 1, p.h + block * row + k * kPack, kPack, row, to - block + 1);
    }
    // Beyond the window each line takes all of the block's reflections at once.
    if (columns <= high) {
      turn_all_lines(turns, end - block, p.h + block * row + columns * kPack, row, kPack,
                     high + 1 - columns);
    }
    turn_all_lines(turns, end - block, p.h + low * row + block * kPack, kPack, row, block - low);
  }
}

}  // namespace
}  // namespace subspace::kernels
