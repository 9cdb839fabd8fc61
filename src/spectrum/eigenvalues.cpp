#include "spectrum/eigenvalues.h"

#include <ATen/ATen.h>

namespace subspace {

at::Tensor symmetric_eigenvalues(const at::Tensor& a) { return at::linalg_eigvalsh(a).flip(-1); }

at::Tensor singular_values_of_gram(const at::Tensor& gram) {
  return symmetric_eigenvalues(gram).clamp_min(0).sqrt();
}

at::Tensor psd_factor(const at::Tensor& gram) {
  // Cholesky would do for full rank only; the eigenvectors' factor needs no rank.
  const auto [values, vectors] = at::linalg_eigh(gram);
  return vectors * values.clamp_min(0).sqrt().unsqueeze(-2);
}

}  // namespace subspace
