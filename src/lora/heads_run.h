#pragma once

#include <c10/core/Device.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "lora/heads_result.h"

namespace subspace {

/// A base model and an adapter on it, a layer at a time. Both are called from threads of their own,
/// side by side, one layer ahead of the work.
struct HeadsSource {
  std::function<AttentionLayer(std::int64_t layer)> load;
  std::function<LayerChange(std::int64_t layer)> change;
  Json model;  ///< what the files say of both under "model"
};

struct HeadsOptions {
  std::filesystem::path out;
  std::vector<std::int64_t> layers;
  /// Frobenius quantities of rotary circuits are averaged over these, and listed at those.
  std::vector<std::int64_t> window = {0}, curve = {};
  bool fold_norm = false;
  /// safetensors file with `layers.<L>.second_moment` [d, d], float32 or float64: S = E[x^T x] of
  /// what the projections read; empty: all directions count alike.
  std::filesystem::path second_moment;
  /// S of layer 0 from the embeddings (embedding_moment), where no file is given; undefined: none.
  at::Tensor embedding_moment;
  /// G of the embeddings (token_map): copying from tokens to tokens; undefined: not asked for.
  at::Tensor token_map;
  std::int64_t vectors = 0;  ///< leading singular vectors of every M, M', dM that are kept
  bool gain_free = false;    ///< intruders also of M' - gain M
  at::Device device = at::kCPU;
  /// Called with each finished layer, in order, and its heads' entries.
  std::function<void(const LayerResult&, const Json& entries)> on_layer;
  /// Layers worked on at once, each by a part of the threads; 0: two on the CPU, and as many as
  /// there are threads where a GPU forms what takes sums over the model's width, since what is left
  /// then is a thousand small matrices.
  int layers_at_once = 0;
};

/// Everything of one layer: what `lora heads` writes of it.
LayerResult layer_heads(const AttentionLayer& layer, const LayerChange& change,
                        const HeadsOptions& options);

/// `subspace lora heads`: heads.json, heads.csv and heads.safetensors in the folder, each whole or
/// not at all, written when the last layer is done. The next layer is read while one is computed;
/// on a GPU it is also multiplied out, and fetched in one transfer, while others are computed.
/// Returns heads.json's contents. Throws NotFound / InvalidShape / NotFinite as reading and
/// circuit_metrics do, Interrupted between layers.
Json run_lora_heads(const HeadsSource& source, const HeadsOptions& options);

/// `subspace lora rope`: rope.json and rope.csv, the relative size of dM over the curve's offsets
/// for each head, and how base, terms and dM spread over the rotary frequencies. Throws
/// InvalidValue for a model without rotary circuits.
Json run_lora_rope(const HeadsSource& source, const HeadsOptions& options);

/// C, C^T C = S, of a second moment S [d, d].
at::Tensor moment_factor(const at::Tensor& s);

/// Reads S of a layer and returns a factor C, C^T C = S. Throws NotFound, InvalidShape, Unsupported
/// (dtype), NotFinite, InvalidValue (not symmetric).
at::Tensor second_moment_factor(const std::filesystem::path& file, std::int64_t layer,
                                std::int64_t width);

}  // namespace subspace
