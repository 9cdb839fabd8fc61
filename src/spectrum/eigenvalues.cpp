#include "spectrum/eigenvalues.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "base/error.h"
#include "kernels/psd_factor.h"
#include "kernels/symmetric_eigenvalues.h"

namespace subspace {
namespace {

constexpr std::int64_t kWidestOwn = 128;

bool goes_to_own_kernels(const at::Tensor& a) {
  return a.device().is_cpu() && a.scalar_type() == at::kDouble && a.numel() > 0 &&
         own_kernels_for(a.size(-1));
}

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
  require_finite(at::tril(a).reshape({-1, n * n}), n, what);
}

}  // namespace

bool own_kernels_for(std::int64_t n) { return n >= 1 && n <= kWidestOwn; }

at::Tensor symmetric_eigenvalues(const at::Tensor& a) {
  if (!goes_to_own_kernels(a)) {
    if (a.numel() > 0) require_finite_lower(a, "eigenvalues");
    return at::linalg_eigvalsh(a).flip(-1);
  }
  const std::int64_t n = a.size(-1);
  const at::Tensor work = a.clone(at::MemoryFormat::Contiguous);
  const std::int64_t batch = work.numel() / (n * n);
  at::Tensor out = at::empty(a.sizes().slice(0, a.sizes().size() - 1), a.options());
  const at::Tensor scratch = at::empty({batch, 3 * n}, a.options());
  kernels::symmetric_eigenvalues_cpu({.a = work.data_ptr<double>(),
                                      .out = out.data_ptr<double>(),
                                      .scratch = scratch.data_ptr<double>(),
                                      .n = n,
                                      .batch = batch},
                                     at::get_num_threads());
  // The kernel marks every value of a matrix that it could not do.
  require_finite(out.reshape({batch, n}), n, "eigenvalues");
  return out;
}

at::Tensor singular_values_of_gram(const at::Tensor& gram) {
  return symmetric_eigenvalues(gram).clamp_min(0).sqrt();
}

at::Tensor psd_factor(const at::Tensor& gram) {
  if (!goes_to_own_kernels(gram)) {
    if (gram.numel() > 0) require_finite_lower(gram, "factor");
    // Cholesky would do for full rank only; the eigenvectors' factor needs no rank.
    const auto [values, vectors] = at::linalg_eigh(gram);
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2);
  }
  const std::int64_t n = gram.size(-1);
  const at::Tensor g = gram.contiguous();
  const std::int64_t batch = g.numel() / (n * n);
  const at::Tensor r = at::empty(g.sizes(), g.options());
  const at::Tensor diagonal = at::empty({batch, n}, g.options());
  kernels::psd_factor_cpu({.g = g.data_ptr<double>(),
                           .r = r.data_ptr<double>(),
                           .diagonal = diagonal.data_ptr<double>(),
                           .n = n,
                           .batch = batch},
                          at::get_num_threads());
  require_finite(r.reshape({batch, n * n}), n, "factor");
  return r.transpose(-2, -1);
}

}  // namespace subspace
