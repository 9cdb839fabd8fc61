#include "spectrum/eigenvalues.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#ifdef SUBSPACE_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>

#include "base/error.h"
#include "kernels/band_to_tridiagonal.h"
#include "kernels/psd_factor.h"
#include "kernels/symmetric_eigenvalues.h"
#include "kernels/tridiagonal_eigenvalues.h"
#include "spectrum/band_reduction.h"
#include "spectrum/device_stream.h"

namespace subspace {
namespace {

constexpr std::int64_t kWidestOwn = 128;
constexpr std::int64_t kNarrowestBand = 2000;
/// A multiple of 24, the width of the products' inner kernel: 64 and 80 columns take MKL twice as
/// long as 72. Wider bands make the products faster and the way down to tridiagonal form longer.
constexpr std::int64_t kBandWidth = 72;
constexpr std::int64_t kRowsAtOnce = 512;
/// Problems that a GPU works on at once: each has few long kernels and many short ones.
constexpr std::size_t kAtOnce = 4;

/// `values` [batch, any]: throws for the first matrix that has a value which is not finite.
void require_finite(const at::Tensor& values, std::int64_t n, const char* what) {
  const at::Tensor finite = at::isfinite(values).all(1);
  if (finite.all().item<bool>()) return;
  const auto bad = finite.logical_not().nonzero()[0].item<std::int64_t>();
  fail(ErrorCode::NotFinite,
       "{} of matrix {} of {} ({} x {}): it has a NaN or an infinity, or the iteration did not "
       "converge; expected a finite symmetric matrix. Check the weights that it was made from: "
       "finite ones beyond 1e150 overflow when they are squared.",
       what, bad, values.size(0), n, n);
}

/// The upper triangle may hold anything, and LAPACK's own answer to NaN differs between builds.
void require_finite_lower(const at::Tensor& a, const char* what) {
  const std::int64_t n = a.size(-1);
  const at::Tensor matrices = a.reshape({-1, n, n});
  at::Tensor largest = at::zeros({matrices.size(0), 1}, a.options());
  // A few rows at a time: a copy of a large matrix would count.
  for (std::int64_t row = 0; row < n; row += kRowsAtOnce) {
    const std::int64_t count = std::min(kRowsAtOnce, n - row);
    const at::Tensor part = matrices.narrow(1, row, count).tril(row).abs().amax({1, 2});
    largest = at::maximum(largest, part.unsqueeze(1));  // NaN stays NaN
  }
  require_finite(largest, n, what);
}

EigenRoute route_of(const at::Tensor& a) {
  return a.numel() == 0 || a.scalar_type() != at::kDouble ? EigenRoute::library
                                                          : eigen_route(a.device(), a.size(-1));
}

void own_eigenvalues(const at::Tensor& work, const at::Tensor& out, std::int64_t n,
                     std::int64_t batch) {
#ifdef SUBSPACE_CUDA
  if (work.is_cuda()) {
    const auto stream = c10::cuda::getCurrentCUDAStream(work.device().index());
    kernels::symmetric_eigenvalues_cuda(
        {.a = work.data_ptr<double>(), .out = out.data_ptr<double>(), .n = n, .batch = batch},
        stream.stream());
    return;
  }
#endif
  const at::Tensor scratch = at::empty({batch, 3 * n}, work.options());
  kernels::symmetric_eigenvalues_cpu({.a = work.data_ptr<double>(),
                                      .out = out.data_ptr<double>(),
                                      .scratch = scratch.data_ptr<double>(),
                                      .n = n,
                                      .batch = batch},
                                     at::get_num_threads());
}

void own_factor(const at::Tensor& g, const at::Tensor& r, std::int64_t n, std::int64_t batch) {
#ifdef SUBSPACE_CUDA
  if (g.is_cuda()) {
    const auto stream = c10::cuda::getCurrentCUDAStream(g.device().index());
    kernels::psd_factor_cuda(
        {.g = g.data_ptr<double>(), .r = r.data_ptr<double>(), .n = n, .batch = batch},
        stream.stream());
    return;
  }
#endif
  const at::Tensor diagonal = at::empty({batch, n}, g.options());
  kernels::psd_factor_cpu({.g = g.data_ptr<double>(),
                           .r = r.data_ptr<double>(),
                           .diagonal = diagonal.data_ptr<double>(),
                           .n = n,
                           .batch = batch},
                          at::get_num_threads());
}

/// Dense to band to tridiagonal to eigenvalues, in no order, of one finite matrix, overwritten.
at::Tensor band_eigenvalues(at::Tensor work) {
  const std::int64_t n = work.size(0);
  // A power of two brings the entries near 1 and changes no bit of them.
  int exponent = 0;
  std::frexp(work.diagonal().abs().max().item<double>(), &exponent);
  if (exponent != 0) work.mul_(std::ldexp(1.0, -exponent));
  at::Tensor band = reduce_to_band(work, kBandWidth);
  work.reset();
  at::Tensor d = at::empty({n}, band.options());
  const at::Tensor e = at::empty({n - 1}, band.options());
  kernels::band_to_tridiagonal_cpu({.band = band.data_ptr<double>(),
                                    .d = d.data_ptr<double>(),
                                    .e = e.data_ptr<double>(),
                                    .n = n,
                                    .width = kBandWidth},
                                   at::get_num_threads());
  if (!kernels::tridiagonal_eigenvalues(d.data_ptr<double>(), e.data_ptr<double>(), n)) {
    d.fill_(std::nan(""));
  }
  return d.mul_(std::ldexp(1.0, exponent));
}

}  // namespace

EigenRoute eigen_route(const at::Device& device, std::int64_t n) {
  if (n < 1) return EigenRoute::library;
  if (device.is_cpu()) {
    return n <= kWidestOwn      ? EigenRoute::own
           : n < kNarrowestBand ? EigenRoute::library
                                : EigenRoute::band;
  }
#ifdef SUBSPACE_CUDA
  static const std::int64_t widest = kernels::symmetric_eigenvalues_cuda_limit();
  if (device.is_cuda() && n <= widest) return EigenRoute::own;
#endif
  return EigenRoute::library;
}

namespace {

/// `overwrite`: a may be used up.
at::Tensor find_eigenvalues(const at::Tensor& a, bool overwrite) {
  const EigenRoute route = route_of(a);
  if (route == EigenRoute::library) {
    if (a.numel() > 0) require_finite_lower(a, "eigenvalues");
    return at::linalg_eigvalsh(a).flip(-1);
  }
  const std::int64_t n = a.size(-1), batch = a.numel() / (n * n);
  const at::Tensor work =
      overwrite && a.is_contiguous() ? a : a.clone(at::MemoryFormat::Contiguous);
  at::Tensor out = at::empty(a.sizes().slice(0, a.sizes().size() - 1), a.options());
  if (route == EigenRoute::band) {
    require_finite_lower(a, "eigenvalues");
    const at::Tensor matrices = work.view({batch, n, n}), rows = out.view({batch, n});
    for (std::int64_t i = 0; i < batch; ++i) {
      rows[i].copy_(std::get<0>(band_eigenvalues(matrices[i]).sort(0, /*descending=*/true)));
    }
  } else {
    own_eigenvalues(work, out, n, batch);
  }
  // NaN is how either route marks a matrix that it could not do.
  require_finite(out.reshape({batch, n}), n, "eigenvalues");
  return out;
}

}  // namespace

at::Tensor symmetric_eigenvalues(const at::Tensor& a) { return find_eigenvalues(a, false); }

at::Tensor singular_values_of_gram(at::Tensor gram) {
  return find_eigenvalues(gram, true).clamp_min(0).sqrt();
}

std::vector<at::Tensor> singular_values_of_grams(std::vector<at::Tensor> grams) {
  std::vector<at::Tensor> values(grams.size());
  if (grams.empty()) return values;
  const at::Device device = grams[0].device();
  // The largest first, so that none is left to the end alone.
  std::vector<std::size_t> order(grams.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return grams[a].numel() > grams[b].numel();
  });
  synchronize(device);
  // PyTorch loads its solvers when they are first asked for, which several threads must not do at
  // the same time.
  if (!device.is_cpu()) at::linalg_eigvalsh(at::ones({1, 1}, grams[0].options()));
  std::atomic<std::size_t> next{0};
  std::exception_ptr error;
  std::mutex mutex;
  const auto work = [&] {
    const OwnStream stream(device);
    for (std::size_t i = next++; i < order.size(); i = next++) {
      try {
        values[order[i]] = singular_values_of_gram(grams[order[i]]).to(at::kCPU);
      } catch (...) {
        const std::lock_guard lock(mutex);
        error = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> others;
    const std::size_t threads = device.is_cpu() ? 1 : std::min(kAtOnce, grams.size());
    for (std::size_t t = 1; t < threads; ++t) others.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
  return values;
}

at::Tensor psd_factor(const at::Tensor& gram) {
  if (route_of(gram) != EigenRoute::own) {
    if (gram.numel() > 0) require_finite_lower(gram, "factor");
    // Cholesky would do for full rank only; the eigenvectors' factor needs no rank.
    const auto [values, vectors] = at::linalg_eigh(gram);
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2);
  }
  const std::int64_t n = gram.size(-1);
  const at::Tensor g = gram.contiguous();
  const std::int64_t batch = g.numel() / (n * n);
  const at::Tensor r = at::empty(g.sizes(), g.options());
  own_factor(g, r, n, batch);
  require_finite(r.reshape({batch, n * n}), n, "factor");
  return r.transpose(-2, -1);
}

}  // namespace subspace
