#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "lora/adapted_model.h"
#include "lora/low_rank.h"

namespace subspace {

/// A matrix of attention that an adapter changes, as it is stored: a fused c_attn or
/// query_key_value is one module, split q_proj, k_proj and v_proj are three. Reads no weights.
struct AdaptedModule {
  std::int64_t layer = 0;
  std::string path;                   ///< canonical
  std::vector<std::string> matrices;  ///< what AttentionLayer cuts from it: "q", "k", "v"
  Family::Needed stored;              ///< in the base
  bool transposed = false;            ///< stored as [in, out] (Conv1D)
  std::int64_t out = 0, in = 0;
  std::string kind;       ///< "lora", "dora", or "whole" (modules_to_save)
  std::int64_t rank = 0;  ///< 0: saved whole
  double alpha = 0, scale = 1;
};

/// Those of a layer, in the order of the base's tensors. Throws what AdaptedModel::change does.
std::vector<AdaptedModule> adapted_modules(const AdaptedModel& model, std::int64_t layer);

/// Its weights, [out, in] whatever the storage, float64 on the CPU:
///
///   W' = W + left right^T              "lora": left = s B [out, r], right = A^T [in, r]
///   W' = diag(m / |rows|) (W + ...)    "dora", rows those of W + left right^T
///   W' = adapted                       "whole"
struct ModuleWeights {
  at::Tensor base;
  LowRank change;      ///< undefined where W' - W has no low rank
  at::Tensor adapted;  ///< where it has none
};

/// Throws NotFound without the base's weights, InvalidShape, NotFinite (names the module).
ModuleWeights module_weights(const AdaptedModel& model, const AdaptedModule& module, int threads);

}  // namespace subspace
