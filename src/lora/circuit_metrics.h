#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "lora/frames.h"
#include "lora/offsets.h"
#include "lora/terms.h"

namespace subspace {

struct MetricOptions {
  /// Offsets that Frobenius quantities of a rotary circuit are averaged over, and those at which
  /// its relative size is listed. Spectra are taken at offset 0.
  std::vector<std::int64_t> window = {0};
  std::vector<std::int64_t> curve = {};
  bool spectra = true;      ///< singular values, intruders, angles, amplification
  bool eigenvalues = true;  ///< copying and matching
  bool frequencies = false;
  bool batched = false;  ///< see ProductOptions
  /// Factors C, C^T C = S, of the second moment of what the circuit reads; undefined: none.
  at::Tensor weight;
};

/// How many of the leading singular vectors of M' are looked at, and below which cosine with the
/// base they count as intruders.
inline constexpr std::int64_t kIntruderVectors = 10;
inline constexpr double kIntruderCosine = 0.5;

/// Principal angles between what heads share of a change, span(A) on the side it stands on, and the
/// base's span there.
struct Angles {
  std::string change;  ///< "q", "k", ...
  bool read = true;    ///< on the left side; false: on the right
  at::Tensor cosines;  ///< [H, r], descending
  at::Tensor kernel;   ///< [H] sum of cos^2
  double null_mean = 0, null_deviation = 0;
};

/// All metrics of one circuit of a layer, one row a head, float64 on the CPU; docs/lora.md says
/// what each is. NaN stands for what is not defined (a share of a change that is zero).
struct CircuitMetrics {
  std::string circuit;
  bool rotary = false;
  std::vector<std::string> terms;       ///< "base" first
  std::vector<std::int64_t> term_size;  ///< how many changes take part

  at::Tensor gram;   ///< [H, T, T] <T_a, T_b>, mean over the window
  at::Tensor fro;    ///< [H, 3] base, adapted, delta: root of the mean over the window
  at::Tensor split;  ///< [H, 4] squared: in_in, new_read, new_write, new_new
  at::Tensor align;  ///< [H, 2] energy within the base's span of what is read and written anew
  double null_read = 0, null_write = 0;  ///< what a random orientation has of it
  at::Tensor curve;                      ///< [H, offsets, 2] squared norms of base and delta
  at::Tensor frequency;  ///< [H, T + 1, planes + 1] squared norms, delta last; or undefined

  at::Tensor values_base, values_adapted, values_delta;  ///< [H, n] singular values at offset 0
  at::Tensor rank_delta;                                 ///< [H]
  std::int64_t rank_bound = 0;
  at::Tensor amplification;               ///< [H] |dM| / |U_r^T M V_r|
  at::Tensor intruder_vec, intruder_sub;  ///< [H, 2] left and right
  std::vector<Angles> angles;
  at::Tensor eigen;  ///< [H, 2] sum Re lambda / sum |lambda| of base and adapted; or undefined
};

/// Every metric of section 4 of the specification for one circuit, from frames and cores.
///
/// Frobenius quantities come from k x k Gram matrices of the cores, over all offsets of the window
/// at once; dM never from a difference of large matrices. Heads run in parallel over the threads.
/// Cost a head, with f = k + r: the frames (see frames_of), O(k^2 d) for the eigenvalues' products,
/// three SVDs of f x f or less, two eigenvalue problems k x k.
/// Throws what frames_of throws.
CircuitMetrics circuit_metrics(const Circuit& circuit, const MetricOptions& options);
/// The same in two steps: what takes sums over the model's width, and, once that is fetched, the
/// rest, from frames that are needed for more than this.
CircuitProducts metric_products(const Circuit& circuit, const MetricOptions& options);
CircuitMetrics circuit_metrics(const CircuitProducts& products, const Frames& frames,
                               const MetricOptions& options);

}  // namespace subspace
