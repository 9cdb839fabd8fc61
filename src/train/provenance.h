#pragma once

#include <filesystem>
#include <string>

#include "base/json.h"
#include "train/settings.h"

namespace subspace::train {

/// The first field that two objects have otherwise: "train.steps was 6 and is now 7", or "... and
/// is now absent". Empty: they are equal.
std::string first_difference(const Json& before, const Json& now);

/// Numbers that are done are used again only for what they were made from. Throws InvalidValue
/// unless `before` (what `folder`/result.json says it was asked for) is `now`: names the first
/// field that differs, or one that an older version did not record.
void require_same_request(const std::filesystem::path& folder, const Json& before, const Json& now);

/// SHA-256 of a model's weights: of the bytes of its safetensors files, one behind the other by
/// name (of one file the hash of that file). 5 ns a byte. Throws as Checkpoint.
std::string weights_sha256(const std::filesystem::path& model);

/// Throws InvalidValue if `model` is a run, or a checkpoint of one, whose run.json names another
/// tokenizer than `tokenizer` ({name, sha256}; null: there is none), naming both.
void check_tokenizer(const std::filesystem::path& model, const Json& tokenizer);

/// Lets `experiment` begin with the weights of `model`, a folder in Hugging Face layout, as a run
/// of its own. Throws InvalidValue naming the first field of the configuration that is not the
/// same; Usage for an adapter, which begins as its base.
void begin_with(Experiment& experiment, const std::filesystem::path& model);

}  // namespace subspace::train
