#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/block_scales.h"
#include "checkpoint/safetensors.h"
#include "kernels/dequantize.h"

namespace subspace {

/// A model folder in Hugging Face layout: config.json, and either model.safetensors (or the one
/// safetensors file there is) or model.safetensors.index.json with its shards. Shards are opened
/// (mapped, header validated) when a tensor of theirs is first asked for; nothing else is touched.
///
/// Throws NotFound (no folder, no config.json, no weights: says what was looked for and what is
/// there instead), InvalidFormat (index naming a shard outside the folder, ...).
class Checkpoint {
 public:
  explicit Checkpoint(const std::filesystem::path& folder);
  /// A model of which no more is at hand than config.json: it has the tensors `names`, as far as
  /// has() is asked, and no weights; whatever asks for a tensor throws NotFound.
  Checkpoint(const std::filesystem::path& folder, std::vector<std::string> names);
  ~Checkpoint();

  const std::filesystem::path& folder() const { return folder_; }
  const Json& config() const { return config_; }
  bool has_weights() const { return has_weights_; }

  /// Every tensor name, from the index or the single file's header.
  const std::vector<std::string>& names() const { return names_; }
  bool has(const std::string& name) const;
  /// Header entry. Opens the shard. Throws NotFound (tensor; or shard missing: names both),
  /// Unsupported (stored as packed INT4 instead), InvalidFormat (index and shard disagree).
  const TensorInfo& info(const std::string& name) const;
  /// Name of the file that holds the tensor.
  std::string shard_of(const std::string& name) const;
  /// All shard file names, and the size of all of them on disk (from the index's metadata where a
  /// shard is absent).
  std::vector<std::string> shards() const;
  std::uint64_t total_bytes() const;

  /// The tensor's bytes in the mapped file, counted in bytes_read() (once a tensor).
  std::span<const std::byte> bytes(const std::string& name) const;
  void drop(const std::string& name) const;
  /// Bytes of tensors handed out so far. Safe to call from any thread, as are all const members.
  std::uint64_t bytes_read() const;

  /// Decodes a whole tensor to float64, row-major, on the CPU; [n] counts as [1, n], [a, b, c] as
  /// [a, b c]. FP8 e4m3 is multiplied by the scales of its blocks (128x128, or the configuration's
  /// weight_block_size): `<name>_scale_inv`, `<name>_scale` or, in the maker's own naming,
  /// `<stem>.scale` (F32, BF16, F16 or F8_E8M0), which may sit in another shard; its shape must be
  /// [ceil(M/128), ceil(N/128)], or a single scale for the tensor. With `allow_nonfinite`, NaN and
  /// Inf are let through. Exact. Reads in pieces of 256 kB a thread, so that a tensor costs no
  /// memory beyond `out` and a file that shrinks meanwhile is an Io error.
  /// Throws NotFinite naming tensor, row, column and value; Unsupported for integer types
  /// (naming compressed-tensors INT4 if that is what it is); NotFound for a missing scale.
  void decode(const std::string& name, double* out, int threads,
              bool allow_nonfinite = false) const;

  /// decode() in two steps, for a device that converts values itself. First all that it knows of a
  /// tensor before it reads a value, with the same errors: format, rows, cols and blocks of `how`,
  /// whose pointers are left unset, and the scales.
  struct Encoding {
    kernels::Dequantize how;
    std::vector<float> scales;
  };
  Encoding encoding(const std::string& name, bool allow_nonfinite = false) const;
  /// Then its bytes as stored (info(name).bytes() of them), read by several threads.
  void read(const std::string& name, void* to, int threads) const;
  /// "FILE: tensor 'NAME' holds NaN at [2, 5]; expected finite weights", as decode() says it;
  /// `index` is flat.
  [[noreturn]] void fail_nonfinite(const std::string& name, std::int64_t index, double value) const;

  /// FP8 block scales as float32 [ceil(M/128), ceil(N/128)], or empty if the tensor is not
  /// F8_E4M3 or has none. Throws InvalidShape, InvalidValue for a negative scale, NotFinite.
  std::vector<float> block_scales(const std::string& name, bool allow_nonfinite = false) const;

 private:
  void read_config();
  const SafetensorsFile& shard(const std::string& file) const;
  void count(const std::string& name, std::uint64_t bytes) const;
  /// Throws Unsupported if the checkpoint has `name` as packed INT4 in its place.
  void refuse_packed(const std::string& name) const;
  /// Name of the tensor with the block scales of `name`, or empty.
  std::string scale_name(const std::string& name) const;

  std::filesystem::path folder_;
  BlockSize block_;
  std::uint64_t declared_bytes_ = 0;
  bool has_weights_ = true;
  Json config_;
  std::vector<std::string> names_;
  std::map<std::string, std::string> shard_of_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::unique_ptr<SafetensorsFile>> open_;
  mutable std::map<std::string, bool> counted_;
  mutable std::atomic<std::uint64_t> bytes_read_{0};
};

/// Turns MODEL of the command line into a folder.
///
/// A folder is taken as it is. `org/name[@revision]` is looked up in the Hugging Face cache
/// ($HF_HUB_CACHE, else $HF_HOME/hub, else ~/.cache/huggingface/hub): models--org--name,
/// refs/<revision, default main> -> snapshots/<commit>; so is a `name` alone (gpt2). A URL is
/// refused (Unsupported) with what to do instead. Throws NotFound listing the places looked at.
std::filesystem::path resolve_model(const std::string& model);

}  // namespace subspace
