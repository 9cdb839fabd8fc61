#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "attention/layer.h"
#include "base/json.h"
#include "checkpoint/checkpoint.h"

namespace subspace {

/// Tokens by id, from tokenizer.json (its model's vocabulary and added tokens), vocab.txt (a line a
/// token) or vocab.json of a model's folder; ids without a token are empty. Throws NotFound if
/// there is none, InvalidFormat, InvalidValue (ids out of range).
std::vector<std::string> read_vocabulary(const std::filesystem::path& folder);

/// A token as it is shown: "▁" for the space of byte-level vocabularies, "#17" for one without a
/// name.
std::string token_text(const std::vector<std::string>& vocabulary, std::int64_t id);

struct TokenOptions {
  int threads = 1;
  std::int64_t directions = 4, words = 8;  ///< of each shared basis; of each direction and sign
  /// The norms of a layer (layer_norms), to fold into its directions; empty: none, or `lora heads`
  /// has folded them.
  std::function<AttentionLayer(std::int64_t layer)> norms;
};

/// The words nearest to what an adapter's heads share, and to the leading singular vectors of each
/// head where heads.safetensors has them (HeadVectors): for a direction u, a row of unit length,
/// the `words` tokens t of largest and of smallest cosine
///
///   cos(N^T u, E_t - mean(E))   u is read: E [V, d] the input embedding, N the norm before u
///   cos(u N, U_t - mean(U))     u is written: U [V, d] the output embedding with the final norm
///                               folded in (output_embedding), N a norm behind the heads
///
/// Keys read, as queries do; only VO's right side and o's shared directions are written. Means are
/// taken out because all tokens share them. `random_cosine` is the mean over 32 random directions
/// of their largest cosine: what is not far above it is noise.
///
/// {"random_cosine", "embedding", "written": {"random_cosine", "embedding"}, "features": [{"layer",
/// "circuit", "change", "direction", "along": [{"token", "cosine"}], "against": [..]}], "heads":
/// [{"layer", "head", "circuit", "which", "side", "direction", "along", "against"}]}, side "left"
/// or "right". Directions of other widths (latents) are left out. Throws NotFound (no embedding, no
/// directions). O(V d) memory, O(directions V d) time.
Json token_words(const std::filesystem::path& values, const Checkpoint& model,
                 const TokenOptions& options = {});

}  // namespace subspace
