#include "lora/head_vectors.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "base/error.h"
#include "lora/circuit_metrics.h"
#include "lora/head_spectra.h"

namespace subspace {
namespace {

HeadVectors::Pair leading_pair(const LowRank& matrix, std::int64_t count) {
  const std::int64_t most =
      std::min({count, matrix.width(), matrix.left.size(-2), matrix.right.size(-2)});
  const Triples found = singular_triples(matrix, most);
  if (most == 0) return {found.left.mT().to(at::kCPU), found.right.mT().to(at::kCPU)};
  const at::Tensor largest = found.left.abs().argmax(1, /*keepdim=*/true);
  const at::Tensor sign = found.left.gather(1, largest).sign();
  const auto rows = [](const at::Tensor& columns) {
    return columns.mT().to(at::kCPU).contiguous();
  };
  return {rows(found.left * sign), rows(found.right * sign)};
}

/// Of one side: leading vectors [f, n] that no single base vector is near, and that the base's
/// span (1 in `inside`) is not near.
std::array<double, 2> intruders_among(const at::Tensor& leading, const at::Tensor& base,
                                      const at::Tensor& inside) {
  const at::Tensor nearest = at::matmul(base.t(), leading).abs().amax(0);
  const at::Tensor within = (leading.square() * inside.unsqueeze(1)).sum(0);
  const double bound = kIntruderCosine;
  return {(nearest < bound).sum().item<double>(), (within < bound * bound).sum().item<double>()};
}

}  // namespace

HeadVectors head_vectors(const Circuit& circuit, std::int64_t count) {
  const Circuit still = at_offset(circuit, 0);
  return {leading_pair(circuit_factors(still, /*adapted=*/false), count),
          leading_pair(circuit_factors(still, /*adapted=*/true), count),
          leading_pair(delta_factors(still), count)};
}

at::Tensor copying_of_tokens(const Circuit& vo, const at::Tensor& map) {
  if (vo.left.rows != map.size(1) || vo.right.rows != map.size(0)) {
    fail(ErrorCode::InvalidShape,
         "layer {}: {} goes from a width of {} to {}; the embeddings are {} wide", vo.layer,
         vo.name(), vo.left.rows, vo.right.rows, map.size(0));
  }
  std::vector<at::Tensor> ratios;
  for (const bool base_only : {true, false}) {
    const at::Tensor read = for_heads(at::matmul(map, formed(vo.left, base_only)), vo.heads);
    const at::Tensor write = for_heads(formed(vo.right, base_only), vo.heads);
    ratios.push_back(eigenvalue_ratio(at::bmm(write.mT(), read).to(at::kCPU)));
  }
  return at::stack(ratios, 1);
}

GainFree gain_free_intruders(const Frames& frames, const at::Tensor& gain) {
  const Circuit cores = at_offset(frames.circuit, 0);
  const std::int64_t heads = cores.heads;
  const auto of_heads = [&](const at::Tensor& x) { return for_heads(x, heads).to(at::kCPU); };
  const at::Tensor x0 = of_heads(formed(cores.left, true)), x1 = of_heads(formed(cores.left));
  const at::Tensor y0 = of_heads(formed(cores.right, true)), y1 = of_heads(formed(cores.right));
  const at::Tensor left = of_heads(frames.left_base), right = of_heads(frames.right_base);
  GainFree out{at::zeros({heads, 2}, at::kDouble), at::zeros({heads, 2}, at::kDouble)};
  at::parallel_for(0, heads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const at::Tensor base = at::matmul(x0[i], y0[i].t());
      const auto [u, s, vh] = at::linalg_svd(base, /*full_matrices=*/false);
      const auto [u1, s1, vh1] =
          at::linalg_svd(at::matmul(x1[i], y1[i].t()) - gain[i] * base, false);
      const std::int64_t kept = std::min(cores.left.width, s.size(0));
      const std::int64_t top = std::min(kIntruderVectors, kept);
      const auto reads = intruders_among(u1.narrow(1, 0, top), u.narrow(1, 0, kept), left[i]);
      const auto writes =
          intruders_among(vh1.t().narrow(1, 0, top), vh.t().narrow(1, 0, kept), right[i]);
      for (const std::size_t side : {0U, 1U}) {
        const auto& found = side == 0 ? reads : writes;
        out.intruder_vec[i][static_cast<std::int64_t>(side)] = found[0];
        out.intruder_sub[i][static_cast<std::int64_t>(side)] = found[1];
      }
    }
  });
  return out;
}

}  // namespace subspace
