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
