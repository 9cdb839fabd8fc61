#include "checkpoint/checkpoint.h"

#include <algorithm>

#include "base/error.h"
#include "checkpoint/shard_index.h"

namespace subspace {
namespace fs = std::filesystem;
namespace {

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleName = "model.safetensors";

std::string listing(const fs::path& folder) {
  std::vector<std::string> found;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(folder, status)) {
    found.push_back(entry.path().filename().string());
  }
  std::sort(found.begin(), found.end());
  if (found.size() > 8) {
    found.resize(8);
    found.emplace_back("...");
  }
  return found.empty() ? "nothing" : fmt::format("{}", fmt::join(found, ", "));
}

/// The weights of a folder that has neither of the usual names: its one safetensors file, unless
/// that belongs to an adapter.
std::string only_safetensors_file(const fs::path& folder) {
  std::vector<std::string> found;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(folder, status)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".safetensors") && !name.starts_with("adapter_")) found.push_back(name);
  }
  return found.size() == 1 ? found.front() : std::string();
}

}  // namespace

void Checkpoint::read_config() {
  const fs::path& folder = folder_;
  std::error_code status;
  if (!fs::exists(folder, status)) {
    fail(ErrorCode::NotFound,
         "{}: no such folder; expected a model folder with config.json and safetensors files",
         folder.string());
  }
  if (!fs::is_directory(folder, status)) {
    fail(ErrorCode::NotFound,
         "{}: not a folder; expected a model folder with config.json and safetensors files",
         folder.string());
  }
  if (!fs::exists(folder / "config.json", status)) {
    fail(ErrorCode::NotFound,
         "{}: not a model folder: no config.json in it (found {}); give the folder that holds "
         "config.json and the safetensors files",
         folder.string(), listing(folder));
  }
  config_ = read_json_file(folder / "config.json");
  if (!config_.is_object()) {
    fail(ErrorCode::InvalidFormat, "{}: expected a JSON object", (folder / "config.json").string());
  }
  block_ = weight_block_size(config_, (folder / "config.json").string());
}

Checkpoint::Checkpoint(const fs::path& folder) : folder_(folder) {
  read_config();
  std::error_code status;
  // The single file first, as transformers has it.
  const bool single = fs::exists(folder / kSingleName, status);
  const bool indexed = !single && fs::exists(folder / kIndexName, status);
  const std::string file = single ? kSingleName : only_safetensors_file(folder);
  if (indexed) {
    const fs::path path = folder / kIndexName;
    ShardIndex index = parse_shard_index(read_text_file(path), path.string());
    shard_of_ = std::move(index.weight_map);
    declared_bytes_ = index.total_size;
  } else if (!file.empty()) {
    for (const auto& [name, info] : shard(file).header().tensors) shard_of_.emplace(name, file);
  } else {
    fail(ErrorCode::NotFound,
         "{}: no weights: neither {} nor {} is there (found {}). Weights in another form must be "
         "saved as safetensors first: model.save_pretrained(FOLDER) in transformers does it",
         folder.string(), kSingleName, kIndexName, listing(folder));
  }
  names_.reserve(shard_of_.size());
  for (const auto& [name, file] : shard_of_) names_.push_back(name);
}

Checkpoint::Checkpoint(const fs::path& folder, std::vector<std::string> names)
    : folder_(folder), has_weights_(false), names_(std::move(names)) {
  read_config();
  std::sort(names_.begin(), names_.end());
  for (const std::string& name : names_) shard_of_.emplace(name, kSingleName);
}

Checkpoint::~Checkpoint() = default;

const SafetensorsFile& Checkpoint::shard(const std::string& file) const {
  const std::lock_guard lock(mutex_);
  auto& slot = open_[file];
  if (!slot) {
    std::error_code status;
    if (!fs::exists(folder_ / file, status)) {
      open_.erase(file);
      if (!has_weights_) {
        fail(ErrorCode::NotFound,
             "{}: there is a config.json but no weights; they are needed for this",
             folder_.string());
      }
      fail(ErrorCode::NotFound,
           "{}: the shard '{}' that the index names is missing; fetch it again or complete the "
           "download",
           folder_.string(), file);
    }
    try {
      slot = std::make_unique<SafetensorsFile>(folder_ / file);
    } catch (...) {
      open_.erase(file);
      throw;
    }
  }
  return *slot;
}

bool Checkpoint::has(const std::string& name) const { return shard_of_.contains(name); }

void Checkpoint::refuse_packed(const std::string& name) const {
  constexpr std::string_view kSuffix = ".weight";
  if (!name.ends_with(kSuffix) || !has(name + "_packed")) return;
  fail(ErrorCode::Unsupported,
       "{}: '{}' is stored as compressed-tensors INT4 ('{}_packed'); expected F64, F32, F16, BF16 "
       "or "
       "F8_E4M3. Released INT4 checkpoints keep attention in BF16 (quantization_config's ignore "
       "list holds it): take one of those, or the weights before quantisation",
       folder_.string(), name, name);
}

std::string Checkpoint::shard_of(const std::string& name) const {
  const auto found = shard_of_.find(name);
  if (found == shard_of_.end()) {
    refuse_packed(name);
    fail(ErrorCode::NotFound, "{}: no tensor '{}' among the {} of the checkpoint", folder_.string(),
         name, shard_of_.size());
  }
  return found->second;
}

const TensorInfo& Checkpoint::info(const std::string& name) const {
  const std::string file = shard_of(name);
  const auto& tensors = shard(file).header().tensors;
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    fail(ErrorCode::InvalidFormat,
         "{}: the index says that tensor '{}' is in '{}', but that file does not have it",
         folder_.string(), name, file);
  }
  return found->second;
}

std::vector<std::string> Checkpoint::shards() const {
  std::vector<std::string> files;
  for (const auto& [name, file] : shard_of_) files.push_back(file);
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return files;
}

std::uint64_t Checkpoint::total_bytes() const {
  std::uint64_t sum = 0;
  for (const std::string& file : shards()) {
    std::error_code status;
    const auto size = fs::file_size(folder_ / file, status);
    if (status) return std::max(sum, declared_bytes_);
    sum += size;
  }
  return sum;
}

void Checkpoint::count(const std::string& name, std::uint64_t bytes) const {
  const std::lock_guard lock(mutex_);
  if (!counted_[name]) {
    counted_[name] = true;
    bytes_read_ += bytes;
  }
}

std::span<const std::byte> Checkpoint::bytes(const std::string& name) const {
  const TensorInfo& tensor = info(name);
  count(name, tensor.bytes());
  return shard(shard_of(name)).bytes(name);
}

void Checkpoint::drop(const std::string& name) const { shard(shard_of(name)).drop(name); }

std::uint64_t Checkpoint::bytes_read() const { return bytes_read_; }

}  // namespace subspace
