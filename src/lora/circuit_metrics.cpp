#include "lora/circuit_metrics.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "lora/head_grams.h"
#include "lora/head_spectra.h"

namespace subspace {
namespace {

/// What the spans of two random subspaces of widths p and q in d dimensions share.
void set_null(Angles& angles, std::int64_t rank, std::int64_t base, std::int64_t rows) {
  const auto p = static_cast<double>(rank), q = static_cast<double>(base);
  const auto d = static_cast<double>(rows);
  angles.null_mean = p * q / d;
  angles.null_deviation =
      d > 1 ? std::sqrt(2 * p * q * (d - p) * (d - q) / (d * d * (d - 1) * (d + 2))) : 0;
}

}  // namespace

CircuitProducts metric_products(const Circuit& circuit, const MetricOptions& options) {
  ProductOptions how;
  how.left_weight = options.weight;
  if (circuit.kind != Circuit::Kind::vo) how.right_weight = options.weight;
  how.turned = options.eigenvalues;
  how.batched = options.batched;
  return products_of(circuit, how);
}

CircuitMetrics circuit_metrics(const Circuit& circuit, const MetricOptions& options) {
  std::vector<CircuitProducts> one = {metric_products(circuit, options)};
  fetch(one);
  return circuit_metrics(one[0], frames_of(one[0]), options);
}

CircuitMetrics circuit_metrics(const CircuitProducts& products, const Frames& frames,
                               const MetricOptions& options) {
  const Circuit& circuit = products.circuit;
  const bool rotary = circuit.rotary.layout != Rotary::Layout::none;
  const std::int64_t heads = circuit.heads, k = circuit.left.width;
  const std::vector<Term> terms = terms_of(circuit);
  const std::vector<std::int64_t> none;
  const Offsets offsets(circuit.rotary, k, options.window, rotary ? options.curve : none);
  // Spectra are those at offset 0; YaRN's factor is in them.
  const Circuit still = at_offset(frames.circuit, 0);
  const BaseSpan left(still.left, frames.left_base, heads);
  const BaseSpan right(still.right, frames.right_base, heads);

  CircuitMetrics out;
  find_sizes(frames.circuit, left, right, terms, offsets, options.frequencies, out);
  if (options.spectra) {
    find_spectra(still, left, right, out);
    find_angles(still, left, right, out);
  }
  out.circuit = circuit.name();
  out.rotary = rotary;
  for (const Term& term : terms) {
    out.terms.push_back(term.name);
    out.term_size.push_back(std::popcount(term.set));
  }
  const std::int64_t base_left = std::min(k, circuit.left.rows);
  const std::int64_t base_right = std::min(k, circuit.right.rows);
  out.null_read = static_cast<double>(base_left) / static_cast<double>(circuit.left.rows);
  out.null_write = static_cast<double>(base_right) / static_cast<double>(circuit.right.rows);
  for (Angles& angles : out.angles) {
    set_null(angles, angles.cosines.size(1), angles.read ? base_left : base_right,
             (angles.read ? circuit.left : circuit.right).rows);
  }
  out.rank_bound = std::min(
      {delta_factors(of_heads(still, 0, 1)).width(), 2 * k, circuit.left.rows, circuit.right.rows});
  if (options.eigenvalues && circuit.left.rows == circuit.right.rows) {
    const Turned matrices = turned(products);
    const at::Tensor base = eigenvalue_ratio(matrices.base);
    const bool same = at::equal(matrices.base, matrices.adapted);
    out.eigen = at::stack({base, same ? base : eigenvalue_ratio(matrices.adapted)}, 1);
  }
  return out;
}

}  // namespace subspace
