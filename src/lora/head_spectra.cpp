#include "lora/head_spectra.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "kernels/over_batch.h"
#include "kernels/small_eigenvalues.h"
#include "kernels/small_svd.h"
#include "spectrum/product.h"

namespace subspace {
namespace {

using kernels::SmallSvd;
using Doubles = std::vector<double>;

/// Calls work(i, own) for i < count on all threads, `own` being a Work of the thread's own, which
/// keeps its memory from one matrix to the next.
template <typename Work, typename Call>
void over_heads(std::int64_t count, const Call& call) {
  std::atomic<std::int64_t> next{0};
  const int threads = at::get_num_threads();
  kernels::over_batch(std::min<std::int64_t>(threads, count), threads, [&](std::int64_t) {
    Work own;
    for (std::int64_t i = next++; i < count; i = next++) call(i, own);
  });
}

/// x y for batches of small matrices, the same bits on any number of threads.
at::Tensor small_product(const at::Tensor& x, const at::Tensor& y) {
  return product(x, y, Multiplier::own);
}

Doubles& sized(Doubles& x, std::int64_t n) {
  x.resize(static_cast<std::size_t>(n));
  return x;
}

/// One head's matrix of a contiguous batch.
struct Matrix {
  const double* data;
  std::int64_t rows, columns;
  Matrix(const at::Tensor& batch, std::int64_t head)
      : data(batch.const_data_ptr<double>() + head * batch.size(1) * batch.size(2)),
        rows(batch.size(1)),
        columns(batch.size(2)) {}
};

bool decomposed(SmallSvd& svd, const Matrix& m) {
  return svd.decompose(m.data, m.rows, m.columns, m.columns);
}

/// Heads worked on at once by one thread.
constexpr std::int64_t kHeadsAtOnce = SmallSvd::kAtOnce;
template <typename T>
using OfEach = std::array<T, static_cast<std::size_t>(kHeadsAtOnce)>;

/// out [m, n] = x^T y or x y, x [k, m] or [m, k], y [k, n]: a few columns.
void multiply(bool turned, const double* x, const double* y, std::int64_t m, std::int64_t n,
              std::int64_t k, double* out) {
  std::fill(out, out + m * n, 0.0);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t l = 0; l < k; ++l) {
      const double s = turned ? x[l * m + i] : x[i * k + l];
      for (std::int64_t j = 0; j < n; ++j) out[i * n + j] += s * y[l * n + j];
    }
  }
}

/// Writes a head's row of a [H, n] tensor.
void put(const at::Tensor& to, std::int64_t head, const Doubles& values) {
  std::copy_n(values.data(), to.size(1), to.data_ptr<double>() + head * to.size(1));
}

/// Of one thread.
struct SpectraWork {
  OfEach<SmallSvd> base, adapted, left, right, core;
  OfEach<Doubles> middle;
  Doubles after, cosines, u, v, a, b;
};

/// A few heads.
class Spectra {
 public:
  using Own = SpectraWork;
  Spectra(const Circuit& still, BaseSpan left, BaseSpan right, CircuitMetrics& out)
      : still_(still),
        left_(std::move(left)),
        right_(std::move(right)),
        out_(out),
        heads_(still.heads) {}

  /// The first head that has no decomposition; none: the number of heads.
  std::int64_t run(Own& own) {
    form();
    const auto all = [](std::int64_t) { return true; };
    std::int64_t bad = decompose(own.base, base_, all);
    bad =
        std::min(bad, decompose(own.adapted, whole_, [&](auto head) { return !same_[at(head)]; }));
    if (bad < heads_) return bad;
    for (std::int64_t head = 0; head < heads_; ++head) compare(head, own);
    if (delta_count_ > 0 && thin_) bad = thin_cores(own);
    if (delta_count_ > 0 && !thin_) bad = decompose(own.core, delta_left_, all);
    if (bad < heads_) return bad;
    for (std::int64_t head = 0; delta_count_ > 0 && head < heads_; ++head) delta(head, own);
    amplification(x_, y_);
    return heads_;
  }

 private:
  static std::size_t at(std::int64_t head) { return static_cast<std::size_t>(head); }

  void form() {
    x_ = formed_for_heads(still_.left, true);
    y_ = formed_for_heads(still_.right, true);
    x_whole_ = formed_for_heads(still_.left, false);
    y_whole_ = formed_for_heads(still_.right, false);
    base_ = small_product(left_.within(x_), right_.within(y_).mT());
    whole_ = small_product(x_whole_, y_whole_.mT());
    for (std::int64_t head = 0; head < heads_; ++head) same_[at(head)] = unchanged(head);
    const LowRank delta = delta_factors(still_);
    f_ = std::max(x_.size(1), y_.size(1));
    thin_ = 2 * delta.width() < f_;
    if (thin_) {
      delta_left_ = for_heads(delta.left, heads_).contiguous();
      delta_right_ = for_heads(delta.right, heads_).contiguous();
    } else {
      delta_left_ =
          small_product(for_heads(delta.left, heads_), for_heads(delta.right, heads_).mT());
    }
    allocate(x_.size(2), delta.width());
  }

  /// Those heads that `wanted` says; the first without a decomposition, or the number of heads.
  template <typename Wanted>
  std::int64_t decompose(OfEach<SmallSvd>& svds, const at::Tensor& batch, const Wanted& wanted) {
    OfEach<SmallSvd::Task> tasks;
    OfEach<std::int64_t> of{};
    std::int64_t count = 0, bad = heads_;
    for (std::int64_t head = 0; head < heads_; ++head) {
      if (!wanted(head)) continue;
      const Matrix m(batch, head);
      of[at(count)] = head;
      tasks[at(count++)] = {&svds[at(head)], m.data, m.rows, m.columns, m.columns};
    }
    SmallSvd::decompose(tasks.data(), count);
    for (std::int64_t i = count; i-- > 0;) bad = tasks[at(i)].done ? bad : of[at(i)];
    return bad;
  }

  at::Tensor formed_for_heads(const Side& side, bool base_only) const {
    return for_heads(formed(side, base_only), heads_).contiguous();
  }

  bool unchanged(std::int64_t head) const {
    const auto same = [head](const at::Tensor& before, const at::Tensor& after) {
      const Matrix x(before, head), y(after, head);
      return std::equal(x.data, x.data + x.rows * x.columns, y.data);
    };
    return same(x_, x_whole_) && same(y_, y_whole_);
  }

  void allocate(std::int64_t k, std::int64_t width) {
    const auto rows = [&](std::int64_t n) { return at::zeros({heads_, n}, at::kDouble); };
    kept_ = std::min({k, base_.size(1), base_.size(2)});
    top_ = std::min(kIntruderVectors, kept_);
    out_.values_base = rows(kept_);
    out_.values_adapted = rows(kept_);
    out_.intruder_vec = rows(2);
    out_.intruder_sub = rows(2);
    delta_count_ = thin_ ? width : std::min({delta_left_.size(1), delta_left_.size(2), 2 * k});
    out_.values_delta = rows(delta_count_);
    out_.rank_delta = at::zeros({heads_}, at::kDouble);
    const std::int64_t fl = whole_.size(1), fr = whole_.size(2);
    u_ = at::zeros({heads_, fl, delta_count_}, at::kDouble);
    v_ = at::zeros({heads_, fr, delta_count_}, at::kDouble);
  }

  /// Values of base and adapted, and intruders.
  void compare(std::int64_t head, Own& own) {
    const bool same = same_[at(head)];
    SmallSvd &base = own.base[at(head)], &adapted = same ? base : own.adapted[at(head)];
    put(out_.values_base, head, base.values());
    put(out_.values_adapted, head, adapted.values());
    const at::Tensor& of = same ? base_ : whole_;
    adapted.left(top_, sized(own.after, of.size(1) * top_).data());
    intruders(head, true, own);
    adapted.right(top_, sized(own.after, of.size(2) * top_).data());
    intruders(head, false, own);
  }

  /// Leading vectors of M', in own.after, that no single vector of M is near, and that its span is
  /// not near.
  void intruders(std::int64_t head, bool left, Own& own) {
    const BaseSpan& side = left ? left_ : right_;
    const std::int64_t rows = base_.size(left ? 1 : 2);
    if (side.inside == BaseSpan::kScattered) {
      const double* mask = side.mask.const_data_ptr<double>() + head * side.mask.size(1);
      for (std::int64_t i = 0; i < rows * top_; ++i) {
        own.after[static_cast<std::size_t>(i)] *= mask[i / top_];
      }
    }
    const std::int64_t values = std::min(base_.size(1), base_.size(2));
    double* cosines = sized(own.cosines, values * top_).data();
    if (left) {
      own.base[at(head)].project_left(own.after.data(), top_, cosines);
    } else {
      own.base[at(head)].project_right(own.after.data(), top_, cosines);
    }
    double vec = 0, sub = 0;
    for (std::int64_t t = 0; t < top_; ++t) {
      double nearest = 0, inside = 0;
      for (std::int64_t j = 0; j < kept_; ++j) {
        nearest = std::max(nearest, std::abs(cosines[j * top_ + t]));
      }
      for (std::int64_t i = 0; i < rows; ++i) {
        const double x = own.after[static_cast<std::size_t>(i * top_ + t)];
        inside += x * x;
      }
      vec += nearest < kIntruderCosine ? 1 : 0;
      sub += inside < kIntruderCosine * kIntruderCosine ? 1 : 0;
    }
    out_.intruder_vec.data_ptr<double>()[2 * head + (left ? 0 : 1)] = vec;
    out_.intruder_sub.data_ptr<double>()[2 * head + (left ? 0 : 1)] = sub;
  }

  /// Singular values of dM and bases of what it reads and writes: columns of values that are
  /// rounding are zero.
  void delta(std::int64_t head, Own& own) {
    const std::int64_t fl = u_.size(1), fr = v_.size(1), n = delta_count_;
    double* u = u_.data_ptr<double>() + head * fl * n;
    double* v = v_.data_ptr<double>() + head * fr * n;
    SmallSvd& core = own.core[at(head)];
    const Doubles& values = core.values();
    put(out_.values_delta, head, values);
    const double least =
        static_cast<double>(f_) * std::numeric_limits<double>::epsilon() * values[0];
    std::int64_t rank = 0;
    while (rank < n && values[static_cast<std::size_t>(rank)] > least) ++rank;
    out_.rank_delta.data_ptr<double>()[head] = static_cast<double>(rank);
    if (!thin_) {
      core.left(n, u);
      core.right(n, v);
    } else if (rank == n) {
      // Any basis of the same span will do.
      own.left[at(head)].left(n, u);
      own.right[at(head)].left(n, v);
      return;
    } else {
      own.left[at(head)].left(n, sized(own.u, fl * n).data());
      own.right[at(head)].left(n, sized(own.v, fr * n).data());
      core.left(n, sized(own.a, n * n).data());
      core.right(n, sized(own.b, n * n).data());
      multiply(false, own.u.data(), own.a.data(), fl, n, n, u);
      multiply(false, own.v.data(), own.b.data(), fr, n, n, v);
    }
    for (std::int64_t i = 0; i < fl; ++i) std::fill(u + i * n + rank, u + (i + 1) * n, 0.0);
    for (std::int64_t i = 0; i < fr; ++i) std::fill(v + i * n + rank, v + (i + 1) * n, 0.0);
  }

  /// L R^T = U_l (S_l V_l^T V_r S_r) U_r^T: the singular values are those of the middle. What
  /// decompose() gives.
  std::int64_t thin_cores(Own& own) {
    const std::int64_t w = delta_count_;
    const auto all = [](std::int64_t) { return true; };
    const std::int64_t bad =
        std::min(decompose(own.left, delta_left_, all), decompose(own.right, delta_right_, all));
    if (bad < heads_) return bad;
    OfEach<SmallSvd::Task> tasks;
    for (std::int64_t head = 0; head < heads_; ++head) {
      SmallSvd &left = own.left[at(head)], &right = own.right[at(head)];
      left.right(w, sized(own.a, w * w).data());
      right.right(w, sized(own.b, w * w).data());
      double* c = sized(own.middle[at(head)], w * w).data();
      multiply(true, own.a.data(), own.b.data(), w, w, w, c);
      for (std::int64_t i = 0; i < w; ++i) {
        for (std::int64_t j = 0; j < w; ++j) {
          c[i * w + j] *= left.values()[at(i)] * right.values()[at(j)];
        }
      }
      tasks[at(head)] = {&own.core[at(head)], c, w, w, w};
    }
    SmallSvd::decompose(tasks.data(), heads_);
    for (std::int64_t head = 0; head < heads_; ++head) {
      if (!tasks[at(head)].done) return head;
    }
    return heads_;
  }

  void amplification(const at::Tensor& x, const at::Tensor& y) {
    if (delta_count_ == 0) {
      out_.amplification = at::full({heads_}, std::nan(""), at::kDouble);
      return;
    }
    const at::Tensor seen =
        small_product(small_product(u_.mT(), x), small_product(v_.mT(), y).mT());
    out_.amplification =
        out_.values_delta.square().sum(1).sqrt() / seen.square().sum({1, 2}).sqrt();
  }

  const Circuit& still_;
  BaseSpan left_, right_;
  CircuitMetrics& out_;
  std::int64_t heads_, f_ = 0, kept_ = 0, top_ = 0, delta_count_ = 0;
  bool thin_ = false;
  OfEach<bool> same_{};
  at::Tensor x_, y_, x_whole_, y_whole_, base_, whole_, delta_left_, delta_right_, u_, v_;
};

void join(const std::vector<CircuitMetrics>& parts, CircuitMetrics& out) {
  for (at::Tensor CircuitMetrics::*member :
       {&CircuitMetrics::values_base, &CircuitMetrics::values_adapted,
        &CircuitMetrics::values_delta, &CircuitMetrics::rank_delta, &CircuitMetrics::amplification,
        &CircuitMetrics::intruder_vec, &CircuitMetrics::intruder_sub}) {
    std::vector<at::Tensor> rows;
    for (const CircuitMetrics& part : parts) rows.push_back(part.*member);
    out.*member = at::cat(rows, 0);
  }
}

/// Cosines between the span of a piece and the base's span: one row a matrix of the piece; NaN for
/// one with a NaN.
at::Tensor cosines_of(const at::Tensor& span, const BaseSpan& base) {
  const at::Tensor spans = span.contiguous();
  const std::int64_t count = spans.size(0), f = spans.size(1), p = spans.size(2);
  const bool scattered = base.inside == BaseSpan::kScattered;
  const std::int64_t rows = scattered ? f : base.inside;
  const std::int64_t each = base.mask.size(0) / count;
  const at::Tensor out = at::zeros({count, std::min(rows, p)}, at::kDouble);
  struct Own {
    SmallSvd svd;
    Doubles basis;
  };
  over_heads<Own>(count, [&](std::int64_t i, Own& own) {
    Doubles& basis = sized(own.basis, f * p);
    double* row = out.data_ptr<double>() + i * out.size(1);
    if (!decomposed(own.svd, Matrix(spans, i))) {
      std::fill_n(row, out.size(1), std::nan(""));
      return;
    }
    own.svd.left(p, basis.data());
    if (scattered) {
      const double* mask = base.mask.const_data_ptr<double>() + i * each * f;
      for (std::int64_t j = 0; j < f * p; ++j) basis[static_cast<std::size_t>(j)] *= mask[j / p];
    }
    own.svd.decompose(basis.data(), rows, p, p);
    put(out, i, own.svd.values());
  });
  return out.clamp_max(1);
}

}  // namespace

BaseSpan::BaseSpan(const Side& side, const at::Tensor& given, std::int64_t heads)
    : mask(given.contiguous()) {
  const std::int64_t first = std::min(side.width, side.rows);
  const bool leading = mask.narrow(1, 0, first).all().item<bool>() &&
                       !mask.narrow(1, first, side.rows - first).any().item<bool>();
  inside = leading ? first : kScattered;
  if (!leading) mask = for_heads(mask, heads).contiguous();
}

BaseSpan BaseSpan::of_heads(std::int64_t begin, std::int64_t count) const {
  BaseSpan out = *this;
  if (inside == kScattered) out.mask = mask.narrow(0, begin, count);
  return out;
}

at::Tensor BaseSpan::within(const at::Tensor& x) const {
  return inside == kScattered ? x * mask.unsqueeze(2) : x.narrow(1, 0, inside);
}

at::Tensor BaseSpan::outside(const at::Tensor& x) const {
  return inside == kScattered ? x * (1 - mask).unsqueeze(2)
                              : x.narrow(1, inside, x.size(1) - inside);
}

void find_spectra(const Circuit& still, const BaseSpan& left, const BaseSpan& right,
                  CircuitMetrics& out) {
  const std::int64_t heads = still.heads, groups = (heads + kHeadsAtOnce - 1) / kHeadsAtOnce;
  std::vector<CircuitMetrics> parts(static_cast<std::size_t>(groups));
  std::vector<std::int64_t> bad(static_cast<std::size_t>(groups), heads);
  at::parallel_for(0, groups, 1, [&](std::int64_t first, std::int64_t last) {
    SpectraWork own;
    for (std::int64_t group = first; group < last; ++group) {
      const std::int64_t begin = group * kHeadsAtOnce;
      const std::int64_t count = std::min(kHeadsAtOnce, heads - begin);
      const auto place = static_cast<std::size_t>(group);
      const Circuit some = of_heads(still, begin, count);
      const std::int64_t done =
          Spectra(some, left.of_heads(begin, count), right.of_heads(begin, count), parts[place])
              .run(own);
      if (done < count) bad[place] = begin + done;
    }
  });
  const std::int64_t first_bad = *std::min_element(bad.begin(), bad.end());
  if (first_bad < heads) {
    fail(ErrorCode::NotFinite,
         "layer {}: {} of head {} has a NaN or an infinity, or its singular values did not "
         "converge; check the weights and the adapter",
         still.layer, still.name(), first_bad);
  }
  join(parts, out);
}

void find_angles(const Circuit& still, const BaseSpan& left, const BaseSpan& right,
                 CircuitMetrics& out) {
  for (const bool read : {true, false}) {
    const Side& side = read ? still.left : still.right;
    for (const Piece& piece : side.pieces) {
      if (std::popcount(piece.set) != 1 || !piece.coords.defined() ||
          piece.span.size(2) >= std::min(side.width, side.rows)) {
        continue;
      }
      Angles angles;
      angles.change = term_name(still, piece.set);
      angles.read = read;
      // A scattered base has a mask of its own for each head.
      const BaseSpan& base = read ? left : right;
      const at::Tensor span =
          base.inside == BaseSpan::kScattered ? for_heads(piece.span, still.heads) : piece.span;
      angles.cosines = for_heads(cosines_of(span, base), still.heads);
      angles.kernel = angles.cosines.square().sum(1);
      out.angles.push_back(std::move(angles));
    }
  }
}

at::Tensor eigenvalue_ratio(const at::Tensor& given) {
  using kernels::SmallEigenvalues;
  const at::Tensor matrices = given.contiguous();
  const std::int64_t n = matrices.size(1), count = matrices.size(0);
  const at::Tensor out = at::empty({count}, at::kDouble);
  const std::int64_t at_once = SmallEigenvalues::kAtOnce;
  over_heads<SmallEigenvalues>(
      (count + at_once - 1) / at_once, [&](std::int64_t group, SmallEigenvalues& own) {
        const std::int64_t first = group * at_once, here = std::min(at_once, count - first);
        std::array<const double*, SmallEigenvalues::kAtOnce> a{};
        for (std::int64_t i = 0; i < here; ++i) {
          a[static_cast<std::size_t>(i)] = matrices.const_data_ptr<double>() + (first + i) * n * n;
        }
        own.find(a.data(), here, n, n);
        for (std::int64_t i = 0; i < here; ++i) {
          double trace = 0, sizes = 0;
          for (std::int64_t j = 0; j < n; ++j) {
            const auto place = static_cast<std::size_t>(j);
            trace += a[static_cast<std::size_t>(i)][j * n + j];
            sizes += std::hypot(own.real(i)[place], own.imaginary(i)[place]);
          }
          out.data_ptr<double>()[first + i] = trace / sizes;
        }
      });
  return out;
}

}  // namespace subspace
