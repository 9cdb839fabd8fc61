#pragma once

#include <string>
#include <vector>

#include "attention/layer.h"
#include "spectrum/layer_spectra.h"

namespace subspace {

/// Which heads (or groups) of a layer hold NaN or Inf, one flag each; undefined tensors: empty.
struct NonFinite {
  std::vector<bool> q, q_rope, k, v, o;
  bool any() const;
};

/// Finds the heads with NaN or Inf and sets them to zero in `layer`, which gets new tensors for
/// those it changes. Throws NotFinite (layer, tensor, head) for the first one unless `mark`, and
/// always for a tensor that all heads share.
NonFinite take_out_nonfinite(AttentionLayer& layer, bool mark);

/// "head 3 of O holds NaN or Inf: marked, left out of stacks", one line a tensor.
std::vector<std::string> describe(const NonFinite& found);

/// The layer as the conventions want it: norms folded, the published cut of kv_b_proj.
AttentionLayer apply_conventions(const AttentionLayer& layer, const SpectraOptions& options);

/// The layer whose fused maps have the singular values of the model-space maps: the triangular
/// factors of QA and KVA multiplied into Q, Qpe, K and V, OB into O.
AttentionLayer in_model_space(const AttentionLayer& layer);

}  // namespace subspace
