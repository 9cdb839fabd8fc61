#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "base/error.h"
#include "checkpoint/checkpoint.h"

namespace subspace {
namespace fs = std::filesystem;
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

/// The Hugging Face hub cache, as huggingface_hub finds it.
fs::path hub_cache() {
  if (const auto cache = environment("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (const auto home = environment("HF_HOME"); !home.empty()) return fs::path(home) / "hub";
  if (const auto cache = environment("XDG_CACHE_HOME"); !cache.empty()) {
    return fs::path(cache) / "huggingface" / "hub";
  }
  return fs::path(environment("HOME")) / ".cache" / "huggingface" / "hub";
}

bool plain_name(const std::string& text) {
  return !text.empty() && text != "." && text != ".." &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isalnum(c) || c == '-' || c == '_' || c == '.';
         });
}

/// The snapshot folder of a revision: a branch or tag in refs/, else a
/// (beginning of a) commit.
fs::path snapshot(const fs::path& repository, const std::string& revision) {
  std::error_code status;
  const fs::path ref = repository / "refs" / revision;
  if (fs::is_regular_file(ref, status)) {
    std::string commit;
    std::ifstream(ref) >> commit;
    if (plain_name(commit) && fs::is_directory(repository / "snapshots" / commit, status)) {
      return repository / "snapshots" / commit;
    }
  }
  std::vector<fs::path> matching;
  for (const auto& entry : fs::directory_iterator(repository / "snapshots", status)) {
    if (revision.size() >= 4 && entry.path().filename().string().starts_with(revision)) {
      matching.push_back(entry.path());
    }
  }
  return matching.size() == 1 ? matching.front() : fs::path();
}

}  // namespace

fs::path resolve_model(const std::string& model) {
  if (model.find("://") != std::string::npos) {
    fail(ErrorCode::Unsupported,
         "{}: reading from a URL is not part of this version; download the "
         "model's folder "
         "(config.json and its safetensors files) and give its path",
         model);
  }
  std::error_code status;
  if (fs::is_directory(model, status)) return model;

  const auto at = model.find('@');
  const std::string name = model.substr(0, at);
  const std::string revision = at == std::string::npos ? "main" : model.substr(at + 1);
  const auto slash = name.find('/');
  const bool bare = slash == std::string::npos;  // gpt2, bert-base-uncased
  const bool plain = plain_name(revision) && (bare ? plain_name(name)
                                                   : plain_name(name.substr(0, slash)) &&
                                                         plain_name(name.substr(slash + 1)));
  const fs::path repository =
      hub_cache() /
      ("models--" + (bare ? name : name.substr(0, slash) + "--" + name.substr(slash + 1)));
  const bool cached = plain && fs::is_directory(repository, status);
  if (!plain || fs::exists(model, status) || (bare && !cached)) {
    fail(ErrorCode::NotFound,
         "{}: {}; expected a folder with config.json and safetensors files, or "
         "org/name[@revision] "
         "of a model in the Hugging Face cache",
         model, fs::exists(model, status) ? "not a folder" : "no such folder");
  }
  if (!cached) {
    fail(ErrorCode::NotFound,
         "{}: neither a folder nor a model in the Hugging Face cache (looked "
         "for {}); download it "
         "first, or set HF_HOME or HF_HUB_CACHE to the cache that has it",
         model, repository.string());
  }
  const fs::path found = snapshot(repository, revision);
  if (found.empty()) {
    fail(ErrorCode::NotFound,
         "{}: the Hugging Face cache has the model ({}) but no snapshot of "
         "revision '{}'",
         model, repository.string(), revision);
  }
  return found;
}

}  // namespace subspace
