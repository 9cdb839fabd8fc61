#include "train/provenance.h"

#include <algorithm>
#include <fstream>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/sha256.h"
#include "checkpoint/checkpoint.h"

namespace subspace::train {
namespace fs = std::filesystem;
namespace {

std::string difference_below(const std::string& name, const Json& before, const Json& now) {
  for (const auto& [key, value] : now.items()) {
    const std::string inner = name.empty() ? key : name + "." + key;
    const Json old = before.contains(key) ? before.at(key) : Json();
    if (old.is_object() && value.is_object()) {
      const std::string found = difference_below(inner, old, value);
      if (!found.empty()) return found;
    } else if (old != value) {
      return fmt::format("{} was {} and is now {}", inner, old.is_null() ? "absent" : old.dump(),
                         value.dump());
    }
  }
  for (const auto& [key, value] : before.items()) {
    if (now.contains(key)) continue;
    return fmt::format("{}{}{} was {} and is now absent", name, name.empty() ? "" : ".", key,
                       value.dump());
  }
  return "";
}

}  // namespace

std::string first_difference(const Json& before, const Json& now) {
  return difference_below("", before, now);
}

void require_same_request(const fs::path& folder, const Json& before, const Json& now) {
  const std::string where = (folder / "result.json").string();
  const Fields result(before, where);
  const Json asked = result.object("asked_for").json();
  for (const auto& item : now.items()) {
    if (asked.contains(item.key())) continue;
    fail(ErrorCode::InvalidValue,
         "{}: does not say of which '{}' its numbers are (an older version wrote it), so they "
         "cannot be taken for what is asked now; remove the folder, or choose another --out",
         where, item.key());
  }
  const std::string found = first_difference(asked, now);
  if (found.empty()) return;
  fail(ErrorCode::InvalidValue,
       "{}: was made from other settings than are asked for now: {}; take the former, remove the "
       "folder, or choose another --out",
       folder.string(), found);
}

std::string weights_sha256(const fs::path& model) {
  const Checkpoint checkpoint(model);
  std::vector<std::string> files = checkpoint.shards();
  std::sort(files.begin(), files.end());
  Sha256 hash;
  std::vector<std::byte> piece(std::size_t{1} << 20);
  for (const std::string& file : files) {
    const fs::path path = model / file;
    std::ifstream stream(path, std::ios::binary);
    if (!stream) fail(ErrorCode::Io, "{}: cannot be read", path.string());
    while (stream) {
      stream.read(reinterpret_cast<char*>(piece.data()),
                  static_cast<std::streamsize>(piece.size()));
      hash.update(std::span(piece).first(static_cast<std::size_t>(stream.gcount())));
    }
    if (stream.bad()) fail(ErrorCode::Io, "{}: cannot be read to its end", path.string());
  }
  return hash.hex();
}

void check_tokenizer(const fs::path& model, const Json& tokenizer) {
  if (!tokenizer.is_object()) return;
  // Where a run says what it was trained on: beside its last step, or above its checkpoints.
  for (const fs::path& folder : {model, model.parent_path().parent_path()}) {
    const fs::path path = folder / "run.json";
    if (!fs::exists(path)) continue;
    const Json run = read_json_file(path);
    const auto found = Fields(run, path.string()).object_if("tokenizer");
    const Fields now(tokenizer, "the data's tokenizer");
    if (!found || found->string("sha256") == now.string("sha256")) return;
    fail(ErrorCode::InvalidValue,
         "{}: the model was trained on tokens of '{}' (sha256 {:.8}), the data has those of '{}' "
         "({:.8}); prepare the data with the model's tokenizer",
         path.string(), found->string("name"), found->string("sha256"), now.string("name"),
         now.string("sha256"));
  }
}

void begin_with(Experiment& experiment, const fs::path& model) {
  if (experiment.adapter.is_object()) {
    fail(ErrorCode::Usage, "--from: an adapter begins as its --base, so it takes no other weights");
  }
  Json its = Checkpoint(model).config(), asked = experiment.model;
  for (Json* config : {&its, &asked}) {
    // What says how a model was saved, not what it is.
    for (const char* name : {"architectures", "dtype", "torch_dtype", "transformers_version"}) {
      config->erase(name);
    }
  }
  const std::string found = first_difference(its, asked);
  if (!found.empty()) {
    fail(ErrorCode::InvalidValue,
         "{}: not the model of --from {}, whose {}; its weights begin a model of the same "
         "configuration only",
         experiment.where, model.string(), found);
  }
  experiment.base = model.string();
}

}  // namespace subspace::train
