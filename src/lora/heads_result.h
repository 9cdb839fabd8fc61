#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "lora/circuit_metrics.h"
#include "lora/head_vectors.h"
#include "lora/shared_basis.h"

namespace subspace {

/// All that `lora heads` finds of one circuit of a layer.
struct CircuitResult {
  CircuitMetrics metrics;
  std::vector<SharedBasis> shared;
  HeadVectors vectors;  ///< undefined parts: not asked for
  GainFree gain_free;   ///< likewise
};

/// <M, dM> / |M|^2 of every head, over the window: the part of dM that only rescales the head.
at::Tensor gain_of(const CircuitMetrics& metrics);

struct LayerResult {
  std::int64_t layer = 0;
  std::vector<CircuitResult> circuits;
  BiasMetrics bias;                 ///< undefined parts: no biases
  at::Tensor copying_tokens;        ///< [H, 2] of VO; undefined: not asked for
  std::string offset_mode = "0";    ///< of rotary circuits: "mean 0:257"
  std::vector<std::int64_t> curve;  ///< offsets at which rotary circuits list their relative size
  std::vector<std::string> approx;  ///< flags; those of one circuit alone have "QK:" in front
};

/// Singular values that heads.json lists; heads.safetensors has all.
inline constexpr std::int64_t kListedValues = 8;

/// The entries of heads.json's "heads" for one layer, circuit by circuit, head by head; what is not
/// defined (a share of a zero change) is null.
Json heads_json(const LayerResult& result);
/// The flags of `approx` that concern a circuit, by their names.
Json approx_json(const LayerResult& result, const std::string& circuit);
/// The layer's entry of heads.json's "layers": shared features and which heads use them.
Json shared_json(const LayerResult& result);

/// heads.csv: the numbers of every entry, one row a head and circuit; terms of all layers as
/// columns `share:<term>` and `energy:<term>`.
std::string heads_csv(const Json& heads);

/// layers.<L>.<CIRCUIT>.{base,adapted,delta} [H, n] and layers.<L>.<CIRCUIT>.shared.<change>.
/// {directions [r, d], load [r, H]}, float64, and where vectors were asked for
/// layers.<L>.<CIRCUIT>.vectors.{base,adapted,delta}.{left,right} [H, count, d]; atomically.
void write_head_values(const std::filesystem::path& path, const std::vector<LayerResult>& layers);

}  // namespace subspace
