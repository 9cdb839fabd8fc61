#pragma once

#include <filesystem>
#include <string>
#include <vector>

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

/// The words nearest to what an adapter's heads share: for each of the `directions` strongest
/// shared directions u of heads.safetensors (layers.<L>.<CIRCUIT>.shared.<change>.directions, rows
/// of unit length in the residual stream), the `words` tokens t of largest and of smallest cosine
///
///   cos(u, E_t - mean(E)),   E [V, d] the model's input embedding
///
/// The mean is taken out because all embeddings share it. `random_cosine` is the mean over 32
/// random directions of their largest cosine: what is not far above it is noise.
///
/// {"random_cosine", "embedding", "features": [{"layer", "circuit", "change", "direction", "along":
/// [{"token", "cosine"}], "against": [..]}]}. Directions of other widths (latents) are left out.
/// Throws NotFound (no embedding, no directions). O(V d) memory, O(directions V d) time.
Json token_words(const std::filesystem::path& values, const Checkpoint& model, int threads,
                 std::int64_t directions = 4, std::int64_t words = 8);

}  // namespace subspace
