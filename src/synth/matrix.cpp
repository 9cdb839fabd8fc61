#include "synth/matrix.h"

#include <ATen/ATen.h>

#include "base/random.h"
#include "kernels/over_batch.h"

namespace subspace {
namespace {

at::Tensor orthonormal(std::uint64_t key, std::int64_t rows, std::int64_t cols, int threads) {
  at::Tensor gaussian = at::empty({rows, cols}, at::kDouble);
  double* out = gaussian.data_ptr<double>();
  kernels::over_batch(rows, threads,
                      [&](std::int64_t row) { gaussian_row(key, row, 1, cols, out + row * cols); });
  auto [q, r] = at::linalg_qr(gaussian);
  // Without the signs of R's diagonal, Q would not be uniform among orthonormal matrices.
  return q * r.diagonal().sign();
}

}  // namespace

std::uint64_t tensor_key(std::uint64_t seed, std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  const auto words = philox(seed, hash, 0);
  return std::uint64_t{words[0]} << 32 | words[1];
}

void gaussian_row(std::uint64_t key, std::int64_t row, double std, std::int64_t cols, double* out) {
  Random random(key, static_cast<std::uint64_t>(row));
  for (std::int64_t j = 0; j < cols; ++j) out[j] = std * random.normal();
}

at::Tensor matrix_with_spectrum(std::uint64_t key, std::int64_t m, std::int64_t n,
                                const std::vector<double>& s, int threads) {
  const auto k = static_cast<std::int64_t>(s.size());
  if (k == 0) return at::zeros({m, n}, at::kDouble);
  const at::Tensor u = orthonormal(tensor_key(key, "left"), m, k, threads);
  const at::Tensor v = orthonormal(tensor_key(key, "right"), n, k, threads);
  return at::matmul(u * at::tensor(s, at::kDouble), v.t()).contiguous();
}

}  // namespace subspace
