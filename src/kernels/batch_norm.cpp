#include "kernels/batch_norm.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/column_sums.h"
#include "kernels/element_rows.h"
#include "kernels/over_batch.h"

namespace subspace::kernels {
namespace {

constexpr std::int64_t kRows = 64;       // a thread takes at a time
constexpr std::int64_t kColumns = 2048;  // and columns, whose statistics it then has at hand

/// Columns [begin, begin + count) of x with 1 / sqrt(variance + eps).
struct Columns {
  std::int64_t begin = 0, count = 0;
  float scale[kColumns];
};

/// Calls work(columns) for all of a row.
template <typename Work>
void over_columns(const BatchNormHalves& p, const Work& work) {
  Columns at;
  for (at.begin = 0; at.begin < p.width(); at.begin += kColumns) {
    at.count = std::min(p.width() - at.begin, kColumns);
    for (std::int64_t i = 0; i < at.count; ++i) {
      at.scale[i] = 1 / std::sqrt(p.variance[at.begin + i] + static_cast<float>(p.eps));
    }
    work(at);
  }
}

/// What of one half lies among some columns: it begins at the `from`th of them, in x at `x` and in
/// its side's y at `y`.
struct Stretch {
  std::int64_t from = 0, count = 0, x = 0, y = 0;
  int side = 0;
};

/// Calls work(stretch) for those of a row.
template <typename Work>
void over_stretches(const BatchNormHalves& p, const Columns& at, std::int64_t row,
                    const Work& work) {
  Stretch s;
  for (s.from = 0; s.from < at.count; s.from += s.count) {
    const std::int64_t column = at.begin + s.from, half = column / p.half;
    s.count = std::min((half + 1) * p.half - column, at.count - s.from);
    s.side = static_cast<int>(half % 2);
    s.x = row * p.width() + column;
    s.y = (row * p.heads + half / 2) * p.half + column % p.half;
    work(s);
  }
}

/// Mean less the first row, and sum of squares around it, of rows [begin, end), in double: on the
/// CPU that costs little, and the first row may be far from the others.
template <Element kElement>
void moments_of_piece(const ColumnMoments& p, std::int64_t begin, std::int64_t end, float* mean,
                      float* squares) {
  using V = Values<kElement>;
  const auto rows = static_cast<double>(end - begin);
  for (std::int64_t from = 0; from < p.width; from += kColumns) {
    const std::int64_t count = std::min(p.width - from, kColumns);
    const std::int64_t first = begin * p.width + from;
    double sum[kColumns] = {}, around[kColumns] = {};
    for (std::int64_t row = begin + 1; row < end; ++row) {
      const std::int64_t at = row * p.width + from;
      for (std::int64_t i = 0; i < count; ++i) {
        const double d = static_cast<double>(V::load(p.x, at + i)) - V::load(p.x, first + i);
        sum[i] += d;
        around[i] += d * d;
      }
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const double apart = sum[i] / rows;
      mean[from + i] = static_cast<float>(apart);
      squares[from + i] = static_cast<float>(around[i] - sum[i] * apart);
    }
  }
}

/// Pieces of `cut` put together, as differences from the first row of all. There are few of them,
/// so in double: whatever the level of a column, nothing of its spread is rounded away. Columns
/// [begin, begin + count), at most kColumns.
template <Element kElement>
void join_moments(const ColumnMoments& p, const RowPieces& cut, std::int64_t begin,
                  std::int64_t count) {
  double sum[kColumns] = {}, around[kColumns] = {}, squares[kColumns] = {};
  using V = Values<kElement>;
  for (std::int64_t piece = 0; piece < cut.pieces; ++piece) {
    const float* mean = p.partial + begin + piece * 2 * p.width;
    const std::int64_t start = piece * cut.rows * p.width + begin;
    const auto rows = static_cast<double>(std::min(p.rows - piece * cut.rows, cut.rows));
    for (std::int64_t i = 0; i < count; ++i) {
      const double level = V::load(p.x, start + i), first = V::load(p.x, begin + i);
      const double d = level - first + mean[i];
      sum[i] += rows * d;
      around[i] += rows * d * d;
      squares[i] += mean[p.width + i];
    }
  }
  const auto rows = static_cast<double>(p.rows);
  for (std::int64_t i = 0; i < count; ++i) {
    const double apart = sum[i] / rows;
    p.mean[begin + i] = static_cast<float>(V::load(p.x, begin + i) + apart);
    // Rounding may leave a little less than nothing of equal rows; NaN stays.
    const auto variance = static_cast<float>((squares[i] + (around[i] - sum[i] * apart)) / rows);
    p.variance[begin + i] = variance < 0 ? 0 : variance;
  }
}

template <Element kElement>
void normalise(const BatchNormHalves& p, std::int64_t begin, std::int64_t end) {
  using V = Values<kElement>;
  over_columns(p, [&](const Columns& at) {
    float factor[kColumns];
    const float *mean = p.mean + at.begin, *bias = p.bias + at.begin;
    for (std::int64_t i = 0; i < at.count; ++i) factor[i] = at.scale[i] * p.weight[at.begin + i];
    for (std::int64_t row = begin; row < end; ++row) {
      over_stretches(p, at, row, [&](const Stretch& s) {
        void* out = s.side == 0 ? p.first : p.second;
        for (std::int64_t i = 0; i < s.count; ++i) {
          const std::int64_t c = s.from + i;
          V::store(out, s.y + i, (V::load(p.x, s.x + i) - mean[c]) * factor[c] + bias[c]);
        }
      });
    }
  });
}

/// g and g n, summed over rows [begin, end).
template <Element kElement>
void sums_of_piece(const BatchNormHalvesGrad& q, std::int64_t begin, std::int64_t end, float* bias,
                   float* weight) {
  using V = Values<kElement>;
  const BatchNormHalves& p = q.forward;
  over_columns(p, [&](const Columns& at) {
    float sum[kColumns] = {}, along[kColumns] = {};
    const float* mean = p.mean + at.begin;
    for (std::int64_t row = begin; row < end; ++row) {
      over_stretches(p, at, row, [&](const Stretch& s) {
        const void* grad = s.side == 0 ? q.grad_first : q.grad_second;
        for (std::int64_t i = 0; i < s.count; ++i) {
          const std::int64_t c = s.from + i;
          const float g = V::load(grad, s.y + i);
          sum[c] += g;
          along[c] += g * (V::load(p.x, s.x + i) - mean[c]);
        }
      });
    }
    for (std::int64_t i = 0; i < at.count; ++i) {
      bias[at.begin + i] = sum[i];
      weight[at.begin + i] = along[i] * at.scale[i];
    }
  });
}

template <Element kElement>
void backward(const BatchNormHalvesGrad& q, std::int64_t begin, std::int64_t end) {
  using V = Values<kElement>;
  const BatchNormHalves& p = q.forward;
  const float share = q.of_batch ? 1 / static_cast<float>(p.rows) : 0;
  over_columns(p, [&](const Columns& at) {
    float factor[kColumns], level[kColumns], slope[kColumns];
    const float* mean = p.mean + at.begin;
    for (std::int64_t i = 0; i < at.count; ++i) {
      factor[i] = at.scale[i] * p.weight[at.begin + i];
      level[i] = share * q.grad_bias[at.begin + i];
      slope[i] = share * q.grad_weight[at.begin + i] * at.scale[i];
    }
    for (std::int64_t row = begin; row < end; ++row) {
      over_stretches(p, at, row, [&](const Stretch& s) {
        const void* grad = s.side == 0 ? q.grad_first : q.grad_second;
        for (std::int64_t i = 0; i < s.count; ++i) {
          const std::int64_t c = s.from + i;
          const float common = level[c] + (V::load(p.x, s.x + i) - mean[c]) * slope[c];
          V::store(q.grad_x, s.x + i, factor[c] * (V::load(grad, s.y + i) - common));
        }
      });
    }
  });
}

/// Calls work(begin, end) for runs of rows, on several threads.
template <typename Work>
void over_rows(std::int64_t rows, int threads, const Work& work) {
  over_batch((rows + kRows - 1) / kRows, threads,
             [&](std::int64_t run) { work(run * kRows, std::min(rows, (run + 1) * kRows)); });
}

template <Element kElement>
void column_moments(const ColumnMoments& p, int threads) {
  const RowPieces cut = batch_norm_pieces(p.rows);
  over_batch(cut.pieces, threads, [&](std::int64_t piece) {
    float* mean = p.partial + piece * 2 * p.width;
    moments_of_piece<kElement>(p, piece * cut.rows, std::min(p.rows, (piece + 1) * cut.rows), mean,
                               mean + p.width);
  });
  over_batch((p.width + kColumns - 1) / kColumns, threads, [&](std::int64_t block) {
    join_moments<kElement>(p, cut, block * kColumns,
                           std::min(p.width - block * kColumns, kColumns));
  });
}

template <Element kElement>
void batch_norm_halves_grad(const BatchNormHalvesGrad& q, int threads) {
  const BatchNormHalves& p = q.forward;
  const RowPieces cut = batch_norm_pieces(p.rows);
  const std::int64_t width = p.width();
  over_batch(cut.pieces, threads, [&](std::int64_t piece) {
    float* bias = q.partial + piece * 2 * width;
    sums_of_piece<kElement>(q, piece * cut.rows, std::min(p.rows, (piece + 1) * cut.rows), bias,
                            bias + width);
  });
  std::fill_n(q.grad_bias, width, 0.0f);
  std::fill_n(q.grad_weight, width, 0.0f);
  add_column_sums_cpu(q.partial, cut.pieces, 2 * width, width, q.grad_bias);
  add_column_sums_cpu(q.partial + width, cut.pieces, 2 * width, width, q.grad_weight);
  over_rows(p.rows, threads,
            [&](std::int64_t begin, std::int64_t end) { backward<kElement>(q, begin, end); });
}

}  // namespace

std::int64_t column_moments_workspace(std::int64_t rows, std::int64_t width) {
  return batch_norm_pieces(rows).pieces * 2 * width;
}

void column_moments_cpu(const ColumnMoments& p, int threads) {
  if (p.rows == 0) {
    std::fill_n(p.mean, p.width, std::numeric_limits<float>::quiet_NaN());
    std::fill_n(p.variance, p.width, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  p.element == Element::f32 ? column_moments<Element::f32>(p, threads)
                            : column_moments<Element::bf16>(p, threads);
}

void batch_norm_halves_cpu(const BatchNormHalves& p, int threads) {
  over_rows(p.rows, threads, [&](std::int64_t begin, std::int64_t end) {
    p.element == Element::f32 ? normalise<Element::f32>(p, begin, end)
                              : normalise<Element::bf16>(p, begin, end);
  });
}

void batch_norm_halves_grad_cpu(const BatchNormHalvesGrad& p, int threads) {
  p.forward.element == Element::f32 ? batch_norm_halves_grad<Element::f32>(p, threads)
                                    : batch_norm_halves_grad<Element::bf16>(p, threads);
}

}  // namespace subspace::kernels
