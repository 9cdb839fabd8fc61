#include "kernels/matrix_product.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "kernels/over_batch.h"
#include "kernels/product_tile_body.h"

namespace subspace::kernels {

ProductTile product_tile_portable() { return Tile<4, 2, 2>::tile(); }

namespace {

/// A panel of B, kDepth deep, of one tile's width stays in the first-level cache, a block of A of
/// kRows rows in a third of a second-level cache of 512 KiB. All are multiples of every tile's
/// sides.
constexpr std::int64_t kDepth = 256;
constexpr std::int64_t kRows = 72;
/// Columns of B at a time where one block of A is all there is: they stay beside it.
constexpr std::int64_t kFewColumns = 96;
/// What a thread takes at a time: large enough for copying to cost little.
constexpr std::int64_t kMostRows = 1152;
constexpr std::int64_t kMostColumns = 1008;
constexpr std::int64_t kJobsPerThread = 4;
/// Rows that are asked of memory ahead of those which are copied: each is a page of its own, where
/// the processor does not look ahead by itself.
constexpr std::int64_t kAhead = 4;
/// Operations that are worth a thread.
constexpr std::int64_t kThreadWork = std::int64_t{1} << 23;

std::int64_t round_up(std::int64_t x, std::int64_t to) { return (x + to - 1) / to * to; }

/// An operand seen from the sum: `outer` counts rows of A or columns of B, `inner` runs over k.
struct View {
  const double* data = nullptr;
  std::int64_t outer = 0, inner = 0;  // steps; one of them is 1
  bool lower = false;

  const double* at(std::int64_t x, std::int64_t p) const { return data + x * outer + p * inner; }
};

View view(const ProductOperand& x, std::int64_t batch, bool left) {
  const double* data = x.data + batch * x.batch_stride;
  if (x.stored == Stored::lower) return {data, x.stride, 1, true};
  const bool along = left == (x.stored == Stored::rows);
  return along ? View{data, x.stride, 1, false} : View{data, 1, x.stride, false};
}

/// Where a panel is written: slices of `width` values of the outer index, each [depth, width].
struct Panel {
  double* data = nullptr;
  std::int64_t slice = 0;  // values between slices
  const double* weights = nullptr;
};

/// Outer values next to each other: row after row, which is how memory is read fastest.
template <int kWidth>
void pack_across(const double* from, std::int64_t step, std::int64_t count, std::int64_t depth,
                 const Panel& to) {
  for (std::int64_t p = 0; p < depth; ++p, from += step) {
    double* out = to.data + p * kWidth;
    const double w = to.weights == nullptr ? 1 : to.weights[p];
    const double* soon = p + kAhead < depth ? from + kAhead * step : from;
    std::int64_t x = 0;
    for (; x + kWidth <= count; x += kWidth, out += to.slice) {
      __builtin_prefetch(soon + x);
      for (int i = 0; i < kWidth; ++i) out[i] = w * from[x + i];
    }
    for (int i = 0; x < count && i < kWidth; ++i) out[i] = x + i < count ? w * from[x + i] : 0;
  }
}

/// Inner values next to each other: a slice turns as it is copied.
template <int kWidth>
void pack_along(const double* from, std::int64_t step, std::int64_t count, std::int64_t depth,
                const Panel& to) {
  double* slice = to.data;
  std::int64_t x = 0;
  for (; x + kWidth <= count; x += kWidth, from += kWidth * step, slice += to.slice) {
    double* out = slice;
    for (std::int64_t p = 0; p < depth; ++p, out += kWidth) {
      const double w = to.weights == nullptr ? 1 : to.weights[p];
      for (int i = 0; i < kWidth; ++i) out[i] = w * from[i * step + p];
    }
  }
  if (x == count) return;
  for (std::int64_t p = 0; p < depth; ++p, slice += kWidth) {
    const double w = to.weights == nullptr ? 1 : to.weights[p];
    for (int i = 0; i < kWidth; ++i) slice[i] = x + i < count ? w * from[i * step + p] : 0;
  }
}

template <int kWidth>
void pack_slices(const View& from, std::int64_t x, std::int64_t count, std::int64_t p,
                 std::int64_t depth, const Panel& to) {
  if (from.inner == 1) {
    pack_along<kWidth>(from.at(x, p), from.outer, count, depth, to);
  } else {
    pack_across<kWidth>(from.at(x, p), from.inner, count, depth, to);
  }
}

void pack(std::int64_t width, const View& from, std::int64_t x, std::int64_t count, std::int64_t p,
          std::int64_t depth, const Panel& to) {
  switch (width) {
    case 4:
      return pack_slices<4>(from, x, count, p, depth, to);
    case 6:
      return pack_slices<6>(from, x, count, p, depth, to);
    case 8:
      return pack_slices<8>(from, x, count, p, depth, to);
    case 12:
      return pack_slices<12>(from, x, count, p, depth, to);
    default:
      return pack_slices<16>(from, x, count, p, depth, to);
  }
}

/// A symmetric matrix: what is left of the diagonal block as it is stored, what is right of it
/// turned, and the block itself value by value.
void pack_lower(std::int64_t width, const View& from, std::int64_t x, std::int64_t count,
                std::int64_t p, std::int64_t depth, const Panel& to) {
  const View turned = {from.data, 1, from.outer, false};
  const std::int64_t end = p + depth;
  const std::int64_t left = std::clamp(x, p, end), right = std::clamp(x + count, p, end);
  const auto part = [&](std::int64_t q) {
    return Panel{to.data + (q - p) * width, to.slice,
                 to.weights == nullptr ? nullptr : to.weights + (q - p)};
  };
  pack(width, from, x, count, p, left - p, part(p));
  for (std::int64_t q = left; q < right; ++q) {
    const Panel row = part(q);
    for (std::int64_t i = 0; i < round_up(count, width); ++i) {
      double& out = row.data[i / width * row.slice + i % width];
      if (i < count) {
        out = (x + i >= q ? *from.at(x + i, q) : *turned.at(x + i, q)) *
              (row.weights == nullptr ? 1 : *row.weights);
      } else {
        out = 0;
      }
    }
  }
  pack(width, turned, x, count, right, end - right, part(right));
}

/// The panel of outer values [x, x + count) and inner ones [p, p + depth).
void pack_panel(std::int64_t width, const View& from, std::int64_t x, std::int64_t count,
                std::int64_t p, std::int64_t depth, const double* weights, double* to) {
  const Panel panel = {to, width * depth, weights};
  if (!from.lower) return pack(width, from, x, count, p, depth, panel);
  // A narrow diagonal block, since it is slow.
  const std::int64_t some = 4 * width;
  for (std::int64_t i = 0; i < count; i += some) {
    pack_lower(width, from, x + i, std::min(some, count - i), p, depth,
               {to + i * depth, panel.slice, weights});
  }
}

struct Job {
  std::int64_t batch, row, rows, column, columns;
};

class Product {
 public:
  Product(const MatrixProduct& p, const ProductTile& tile, int threads) : p_(p), tile_(tile) {
    choose_jobs(threads);
    const std::int64_t blocks = std::max<std::int64_t>(1, (p.k + kDepth - 1) / kDepth);
    depth_ = (p.k + blocks - 1) / blocks;
    left_size_ = depth_ * round_up(std::min(kRows, rows_), tile.rows);
    size_ = round_up(left_size_ + depth_ * round_up(columns_, tile.cols), 8);
  }

  void run(int threads) const {
    const std::int64_t count = useful_threads(threads);
    const Scratch scratch(static_cast<std::size_t>(count * size_));
    std::atomic<std::size_t> next{0};
    over_batch(count, static_cast<int>(count), [&](std::int64_t worker) {
      double* work = scratch.data() + worker * size_;
      for (std::size_t i = next++; i < jobs_.size(); i = next++) run(jobs_[i], work);
    });
  }

 private:
  /// Aligned to the lines of the cache, which a row of a panel of B fills.
  class Scratch {
   public:
    explicit Scratch(std::size_t values)
        : data_(static_cast<double*>(::operator new(values * sizeof(double), kLine))) {}
    ~Scratch() { ::operator delete(data_, kLine); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    double* data() const { return data_; }

   private:
    static constexpr std::align_val_t kLine{64};
    double* data_;
  };

  std::int64_t useful_threads(int threads) const {
    const double work = 2.0 * static_cast<double>(p_.batch * p_.m) * static_cast<double>(p_.n) *
                        static_cast<double>(p_.k);
    const auto worth =
        static_cast<std::int64_t>(std::min(work / static_cast<double>(kThreadWork), 1e6) + 1);
    return std::min({static_cast<std::int64_t>(std::max(threads, 1)), worth,
                     static_cast<std::int64_t>(std::max<std::size_t>(jobs_.size(), 1))});
  }

  /// Parts of C, halved until every thread has some; those that the diagonal cuts come last, being
  /// smaller.
  void choose_jobs(int threads) {
    rows_ = std::min(p_.m, kMostRows);
    columns_ = std::min(p_.n, kMostColumns);
    const auto parts = [](std::int64_t all, std::int64_t each) { return (all + each - 1) / each; };
    const auto jobs = [&] {
      const std::int64_t all = parts(p_.m, rows_) * parts(p_.n, columns_) * p_.batch;
      return p_.lower ? all / 2 : all;
    };
    if (p_.m == 0 || p_.n == 0) return;
    while (threads > 1 && jobs() < kJobsPerThread * threads) {
      if (rows_ > kRows && rows_ >= columns_) {
        rows_ = round_up(rows_ / 2, kRows);
      } else if (columns_ > kFewColumns) {
        columns_ = round_up(columns_ / 2, kFewColumns / 2);
      } else {
        break;
      }
    }
    for (const bool cut : {false, true}) {
      for (std::int64_t b = 0; b < p_.batch; ++b) {
        for (std::int64_t i = 0; i < p_.m; i += rows_) {
          for (std::int64_t j = 0; j < p_.n; j += columns_) {
            const Job job = {b, i, std::min(rows_, p_.m - i), j, std::min(columns_, p_.n - j)};
            if (p_.lower && i + job.rows <= j) continue;
            if (cut == (p_.lower && i < j + job.columns)) jobs_.push_back(job);
          }
        }
      }
    }
  }

  void run(const Job& job, double* work) const {
    const View a = view(p_.a, job.batch, true), b = view(p_.b, job.batch, false);
    double* left = work;
    double* right = work + left_size_;
    const bool flat = job.rows <= kRows;
    const std::int64_t width = flat ? std::min(kFewColumns, job.columns) : job.columns;
    std::int64_t p = 0;
    do {
      const std::int64_t depth = std::min(depth_, p_.k - p);
      const double beta = p == 0 ? p_.beta : 1;
      if (flat) pack_panel(tile_.rows, a, job.row, job.rows, p, depth, nullptr, left);
      for (std::int64_t j = 0; j < job.columns; j += width) {
        Job part = job;
        part.column += j;
        part.columns = std::min(width, job.columns - j);
        pack_panel(tile_.cols, b, part.column, part.columns, p, depth,
                   p_.weights == nullptr ? nullptr : p_.weights + p, right);
        for (std::int64_t i = 0; i < job.rows; i += kRows) {
          part.row = job.row + i;
          part.rows = std::min(kRows, job.rows - i);
          if (p_.lower && part.row + part.rows <= part.column) continue;
          if (!flat) pack_panel(tile_.rows, a, part.row, part.rows, p, depth, nullptr, left);
          run_tiles(part, depth, left, right, beta);
        }
      }
      p += depth;
    } while (p < p_.k);
  }

  void run_tiles(const Job& part, std::int64_t depth, const double* left, const double* right,
                 double beta) const {
    double* c = p_.c + part.batch * p_.batch_stride + part.row * p_.stride + part.column;
    for (std::int64_t j = 0; j < part.columns; j += tile_.cols) {
      const double* b = right + j * depth;
      const std::int64_t columns = std::min(tile_.cols, part.columns - j);
      for (std::int64_t i = 0; i < part.rows; i += tile_.rows) {
        const std::int64_t rows = std::min(tile_.rows, part.rows - i);
        // How far the tile's first row is under the row that begins on the diagonal.
        const std::int64_t under = part.row + i - (part.column + j);
        if (p_.lower && under + rows <= 0) continue;
        double* to = c + i * p_.stride + j;
        const bool whole = rows == tile_.rows && columns == tile_.cols;
        if (whole && (!p_.lower || under + 1 >= columns)) {
          tile_.run(depth, left + i * depth, b, to, p_.stride, p_.alpha, beta);
        } else {
          run_part(depth, left + i * depth, b, to, rows, columns, p_.lower ? under : columns, beta);
        }
      }
    }
  }

  /// A tile of which C has only a part: row i of it to column under + i. The same operations, on a
  /// copy.
  void run_part(std::int64_t depth, const double* a, const double* b, double* c, std::int64_t rows,
                std::int64_t columns, std::int64_t under, double beta) const {
    alignas(64) double copy[kMostTileValues] = {};
    const auto bytes = [&](std::int64_t i) {
      return sizeof(double) *
             static_cast<std::size_t>(std::clamp<std::int64_t>(under + i + 1, 0, columns));
    };
    for (std::int64_t i = 0; beta != 0 && i < rows; ++i) {
      std::memcpy(copy + i * tile_.cols, c + i * p_.stride, bytes(i));
    }
    tile_.run(depth, a, b, copy, tile_.cols, p_.alpha, beta);
    for (std::int64_t i = 0; i < rows; ++i) {
      std::memcpy(c + i * p_.stride, copy + i * tile_.cols, bytes(i));
    }
  }

  const MatrixProduct& p_;
  ProductTile tile_;
  std::int64_t rows_ = 0, columns_ = 0;  // of a job
  std::int64_t depth_ = 0;
  std::int64_t left_size_ = 0, size_ = 0;
  std::vector<Job> jobs_;
};

ProductTile tile_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return product_tile_avx512();
  if (isa == Isa::avx2) return product_tile_avx2();
#else
  (void)isa;
#endif
  return product_tile_portable();
}

}  // namespace

void matrix_product_by(const MatrixProduct& p, const ProductTile& tile, int threads) {
  if (p.m == 0 || p.n == 0 || p.batch == 0) return;
  Product(p, tile, threads).run(threads);
}

void matrix_product_cpu(const MatrixProduct& p, int threads, Isa isa) {
  matrix_product_by(p, tile_of(isa), threads);
}

void matrix_product_reference(const MatrixProduct& p) {
  const auto at = [](const ProductOperand& x, std::int64_t batch, std::int64_t i, std::int64_t j) {
    if (x.stored == Stored::columns || (x.stored == Stored::lower && i < j)) std::swap(i, j);
    return x.data[batch * x.batch_stride + i * x.stride + j];
  };
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t i = 0; i < p.m; ++i) {
      for (std::int64_t j = 0; j < (p.lower ? i + 1 : p.n); ++j) {
        double sum = 0;
        for (std::int64_t l = 0; l < p.k; ++l) {
          sum += at(p.a, b, i, l) * (p.weights == nullptr ? 1 : p.weights[l]) * at(p.b, b, l, j);
        }
        double& c = p.c[b * p.batch_stride + i * p.stride + j];
        c = p.alpha * sum + (p.beta == 0 ? 0 : p.beta * c);
      }
    }
  }
}

double product_tolerance(std::int64_t k) {
  return static_cast<double>(k + 4) * std::numeric_limits<double>::epsilon();
}

void mirror_lower(double* c, std::int64_t n, std::int64_t stride, int threads) {
  constexpr std::int64_t kBlock = 32;
  over_batch((n + kBlock - 1) / kBlock, n < 512 ? 1 : threads, [&](std::int64_t block) {
    const std::int64_t first = block * kBlock, end = std::min(n, first + kBlock);
    for (std::int64_t column = 0; column < end; column += kBlock) {
      for (std::int64_t j = column; j < std::min(end, column + kBlock); ++j) {
        for (std::int64_t i = std::max(first, j + 1); i < end; ++i) {
          c[j * stride + i] = c[i * stride + j];
        }
      }
    }
  });
}

}  // namespace subspace::kernels
