#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "base/json.h"
#include "checkpoint/dtype.h"
#include "synth/spectrum_rule.h"

namespace subspace {

struct SynthOptions {
  Json config;              ///< a model's config.json, with the layers wanted
  std::string config_name;  ///< for messages
  std::filesystem::path out;
  DType dtype = DType::BF16;  ///< of matrices: F32, BF16 or F8_E4M3; norms and biases of an FP8
                              ///< model are BF16
  SpectrumRule spectrum{"gaussian"};
  std::uint64_t seed = 0;
  int threads = 1;
};

/// Writes a checkpoint of a known family with what attention reads, and nothing else: projections,
/// norms, biases; no embeddings, feed-forward parts or prediction layers. It serves to measure and
/// to test; it is not a model that runs.
///
///   DIR/config.json, model.safetensors or one shard a layer with model.safetensors.index.json,
///   expected.json
///
/// Matrices: elements std * N(0, 1), std = initializer_range (0.02 if there is none); or
/// W = U diag(s) V^T with prescribed s and random orthonormal factors (QR of Gaussian matrices,
/// 2 (m + n) k^2 operations for k values: minutes for thousands). Norms: 1 + 0.1 N(0, 1) as they
/// multiply; biases std * N(0, 1). An element depends on seed, tensor name and place alone; with
/// prescribed values, LAPACK's rounding may also depend on the number of threads.
///
/// expected.json states the prescribed values before rounding to `dtype`, and for each tensor
/// `rounding_error` = ||stored - exact||_F, by which no singular value can have moved.
///
/// Memory: a few bands of 128 rows; three matrices of float64 where values are prescribed. Throws
/// as open_family for the configuration, InvalidValue if DIR already holds a model, Io. After an
/// error or an interrupt, nothing that was written is left.
///
/// Returns {"out", "model_type", "layers", "tensors", "values", "bytes", "seconds"}.
Json synthesize(const SynthOptions& options);

}  // namespace subspace
