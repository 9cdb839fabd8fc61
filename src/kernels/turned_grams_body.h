#pragma once

#include <cstring>

#include "kernels/packs.h"
#include "kernels/turned_grams_steps.h"

namespace subspace::kernels {
namespace {

/// Of one row: the real parts of every matrix's numbers, then the imaginary ones; x of the left, y
/// of the right, z of the right turned.
struct TurnedRows {
  std::int64_t stride = 0;  ///< from a matrix to the next
  double *x = nullptr, *y = nullptr, *z = nullptr;
  double *mix_x = nullptr, *mix_y = nullptr;      ///< one mix of x and of y
  double *sum_cos = nullptr, *sum_sin = nullptr;  ///< [2, stride / 2]
  double *row = nullptr, *other = nullptr;  ///< of a matrix itself, [whole_packs(k) + kRowStep]

  TurnedRows(const TurnedGrams& p, double* scratch) {
    const std::int64_t planes = p.tables.planes, rest = p.tables.rest;
    const std::int64_t longest = whole_packs(2 * planes + rest);
    stride = 2 * longest;
    x = scratch;
    y = x + p.lefts * stride;
    z = y + p.rights * stride;
    mix_x = z + p.rights * stride;
    mix_y = mix_x + stride;
    sum_cos = mix_y + stride;
    sum_sin = sum_cos + stride;
    row = sum_sin + stride;
    other = row + 2 * planes + rest;
  }
};

constexpr std::int64_t kAtOnce = 4 * kPack;

/// kRows rows of G, apart by `step`, to out and, `apart` further on, the next.
template <int kRows>
inline void rows_of(const GramRows& g, std::int64_t first, std::int64_t step, std::int64_t k,
                    double* out, std::int64_t apart) {
  if (!g.w) {
    for (int r = 0; r < kRows; ++r) {
      std::memcpy(out + r * apart, g.c + (first + r * step) * g.c_row,
                  static_cast<std::size_t>(k) * sizeof(double));
    }
    return;
  }
  const double* w = g.w + first * g.w_row;
  std::int64_t j = 0;
  for (; j + kAtOnce <= k; j += kAtOnce) {
    Pack sums[kRows][4] = {}, c;
    for (std::int64_t l = 0; l < g.p; ++l) {
      const double* from = g.c + l * g.c_row + j;
      for (int i = 0; i < 4; ++i) {
        load(c, from + i * kPack);
        for (int r = 0; r < kRows; ++r) {
          sums[r][i] += w[r * step * g.w_row + l * g.w_column] * c;
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < 4; ++i) store(out + r * apart + j + i * kPack, sums[r][i]);
    }
  }
  for (; j < k; ++j) {
    for (int r = 0; r < kRows; ++r) {
      double sum = 0;
      for (std::int64_t l = 0; l < g.p; ++l) {
        sum += w[r * step * g.w_row + l * g.w_column] * g.c[l * g.c_row + j];
      }
      out[r * apart + j] = sum;
    }
  }
}

/// Rows f and planes + f as complex numbers: z with every plane, w with every plane, with the rest.
inline void cut_plane(const double* first, const double* second, std::int64_t planes,
                      std::int64_t rest, double* re, double* im) {
  constexpr double half = 0.70710678118654752440;
  for (std::int64_t g = 0; g < planes; ++g) {
    const double a = first[g], b = first[planes + g], c = second[g], d = second[planes + g];
    re[g] = half * (a + d);
    im[g] = half * (b - c);
    re[planes + g] = half * (a - d);
    im[planes + g] = -half * (b + c);
  }
  // [x; y] of a plane against an unrotated coordinate is x - i y, on either side.
  for (std::int64_t o = 0; o < rest; ++o) {
    re[2 * planes + o] = first[2 * planes + o];
    im[2 * planes + o] = -second[2 * planes + o];
  }
}

/// out += X Y^T, rows of n numbers, n of whole packs.
inline void add_dots(const double* x, std::int64_t lefts, const double* y, std::int64_t rights,
                     std::int64_t stride, std::int64_t n, double* out) {
  std::int64_t l = 0;
  for (; l + 2 <= lefts; l += 2) {
    std::int64_t r = 0;
    for (; r + 4 <= rights; r += 4) {
      Pack sums[2][4] = {}, a, b;
      for (std::int64_t j = 0; j < n; j += kPack) {
        Pack own[2];
        for (int i = 0; i < 2; ++i) load(own[i], x + (l + i) * stride + j);
        for (int q = 0; q < 4; ++q) {
          load(b, y + (r + q) * stride + j);
          for (int i = 0; i < 2; ++i) sums[i][q] += own[i] * b;
        }
      }
      for (int i = 0; i < 2; ++i) {
        for (int q = 0; q < 4; ++q) {
          a = sums[i][q];
          out[(l + i) * rights + r + q] += sum_of(a);
        }
      }
    }
    for (; r < rights; ++r) {
      for (int i = 0; i < 2; ++i) {
        out[(l + i) * rights + r] += packs_dot<4>(x + (l + i) * stride, y + r * stride, n);
      }
    }
  }
  for (; l < lefts; ++l) {
    for (std::int64_t r = 0; r < rights; ++r) {
      out[l * rights + r] += packs_dot<4>(x + l * stride, y + r * stride, n);
    }
  }
}

inline void mixed(const double* x, const double* weights, std::int64_t count, std::int64_t stride,
                  std::int64_t n, double* out) {
  Pack a, b;
  for (std::int64_t j = 0; j < n; j += kPack) {
    Pack sum = {};
    for (std::int64_t i = 0; i < count; ++i) {
      if (weights[i] == 0) continue;
      load(a, x + i * stride + j);
      sum += weights[i] * a;
    }
    b = sum;
    store(out + j, b);
  }
}

/// What a row of n complex numbers gives at each offset; the tables' row begins at `place`.
inline void add_each(const TurnedGrams& p, const TurnedRows& s, std::int64_t n,
                     std::int64_t place) {
  Pack xr, xi, yr, yi, c, d;
  const std::int64_t half = s.stride / 2;
  for (std::int64_t j = 0; j < s.stride; ++j) s.sum_cos[j] = s.sum_sin[j] = 0;
  for (std::int64_t m = 0; m < p.mixes; ++m) {
    mixed(s.x, p.left_mix + m * p.lefts, p.lefts, s.stride, 2 * n, s.mix_x);
    mixed(s.y, p.right_mix + m * p.rights, p.rights, s.stride, 2 * n, s.mix_y);
    const std::int64_t to = m == 0 ? 0 : half;
    for (std::int64_t j = 0; j < n; j += kPack) {
      load(xr, s.mix_x + j);
      load(xi, s.mix_x + n + j);
      load(yr, s.mix_y + j);
      load(yi, s.mix_y + n + j);
      load(c, s.sum_cos + to + j);
      load(d, s.sum_sin + to + j);
      c += xr * yr + xi * yi;
      d += xi * yr - xr * yi;
      store(s.sum_cos + to + j, c);
      store(s.sum_sin + to + j, d);
    }
  }
  const std::int64_t numbers = p.tables.planes * whole_packs(2 * p.tables.planes + p.tables.rest) +
                               p.tables.rest * whole_packs(p.tables.planes);
  for (std::int64_t i = 0; i < p.tables.offsets; ++i) {
    const double *cosines = p.tables.cos + i * numbers + place,
                 *sines = p.tables.sin + i * numbers + place;
    for (std::int64_t o = 0; o < 2; ++o) {
      p.each[2 * i + o] += packs_dot<4>(s.sum_cos + o * half, cosines, n) +
                           packs_dot<4>(s.sum_sin + o * half, sines, n);
    }
  }
}

/// What a row of n complex numbers, real parts and then imaginary ones, gives to everything.
inline void add_row(const TurnedGrams& p, const TurnedRows& s, std::int64_t n, std::int64_t place) {
  Pack re, im, c, d;
  for (std::int64_t r = 0; r < p.rights; ++r) {
    const double* y = s.y + r * s.stride;
    double* z = s.z + r * s.stride;
    for (std::int64_t j = 0; j < n; j += kPack) {
      load(re, y + j);
      load(im, y + n + j);
      load(c, p.tables.mean_cos + place + j);
      load(d, p.tables.mean_sin + place + j);
      store(z + j, re * c - im * d);
      store(z + n + j, re * d + im * c);
    }
  }
  add_dots(s.x, p.lefts, s.z, p.rights, s.stride, 2 * n, p.mean);
  if (p.each) add_each(p, s, n, place);
}

/// Of unrotated coordinates, n real numbers padded to whole packs.
inline void add_still(const TurnedGrams& p, const TurnedRows& s, std::int64_t n) {
  const std::int64_t padded = whole_packs(n);
  add_dots(s.x, p.lefts, s.y, p.rights, s.stride, padded, p.mean);
  if (p.planes) {
    add_dots(s.x, p.lefts, s.y, p.rights, s.stride, padded,
             p.planes + p.tables.planes * p.lefts * p.rights);
  }
  if (!p.each) return;
  for (std::int64_t m = 0; m < p.mixes; ++m) {
    mixed(s.x, p.left_mix + m * p.lefts, p.lefts, s.stride, padded, s.mix_x);
    mixed(s.y, p.right_mix + m * p.rights, p.rights, s.stride, padded, s.mix_y);
    const double sum = packs_dot<4>(s.mix_x, s.mix_y, padded);
    for (std::int64_t i = 0; i < p.tables.offsets; ++i) p.each[2 * i + (m == 0 ? 0 : 1)] += sum;
  }
}

/// What plane f with itself gives.
inline void add_plane(const TurnedGrams& p, const TurnedRows& s, std::int64_t n, std::int64_t f) {
  double* out = p.planes + f * p.lefts * p.rights;
  for (std::int64_t l = 0; l < p.lefts; ++l) {
    for (std::int64_t r = 0; r < p.rights; ++r) {
      const double *x = s.x + l * s.stride, *y = s.y + r * s.stride;
      out[l * p.rights + r] += p.tables.still * (x[f] * y[f] + x[n + f] * y[n + f]);
    }
  }
}

inline void turned_rows(const TurnedGrams& p, double* scratch) {
  const std::int64_t planes = p.tables.planes, rest = p.tables.rest, k = 2 * planes + rest;
  const TurnedRows s(p, scratch);
  const auto side = [&](bool left, std::int64_t i) -> const GramRows& {
    return left ? p.left[i] : p.right[i];
  };
  const std::int64_t n = whole_packs(2 * planes + rest);
  for (std::int64_t f = 0; f < planes; ++f) {
    for (const bool left : {true, false}) {
      for (std::int64_t i = 0; i < (left ? p.lefts : p.rights); ++i) {
        double* to = (left ? s.x : s.y) + i * s.stride;
        rows_of<2>(side(left, i), f, planes, k, s.row, k);
        cut_plane(s.row, s.other, planes, rest, to, to + n);
      }
    }
    add_row(p, s, n, f * n);
    if (p.planes) add_plane(p, s, n, f);
  }
  const std::int64_t along = whole_packs(planes), still = whole_packs(rest);
  for (std::int64_t o = 0; o < rest; ++o) {
    for (const bool beside : {true, false}) {
      if (beside && planes == 0) continue;
      for (const bool left : {true, false}) {
        for (std::int64_t i = 0; i < (left ? p.lefts : p.rights); ++i) {
          double* to = (left ? s.x : s.y) + i * s.stride;
          rows_of<1>(side(left, i), 2 * planes + o, 0, k, s.row, k);
          for (std::int64_t j = 0; j < (beside ? 2 * along : still); ++j) to[j] = 0;
          for (std::int64_t g = 0; beside && g < planes; ++g) {
            to[g] = s.row[g];
            to[along + g] = -s.row[planes + g];
          }
          for (std::int64_t j = 0; !beside && j < rest; ++j) to[j] = s.row[2 * planes + j];
        }
      }
      if (beside) {
        add_row(p, s, along, planes * n + o * along);
      } else {
        add_still(p, s, rest);
      }
    }
  }
}

}  // namespace
}  // namespace subspace::kernels
