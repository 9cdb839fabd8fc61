#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/json.h"
#include "checkpoint/dtype.h"

namespace subspace {

/// What a header says of one tensor. `begin`, `end` are byte offsets in the file (not in the data
/// section); end - begin == dtype_bits * product(shape) / 8, checked.
struct TensorInfo {
  DType dtype = DType::F32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  std::int64_t elements() const;
  std::uint64_t bytes() const { return end - begin; }
};

/// "[1536, 7168]"
std::string shape_text(std::span<const std::int64_t> shape);

/// A complete, validated safetensors header.
struct SafetensorsHeader {
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
  std::uint64_t data_begin = 0;
};

/// Largest header accepted, the same as the format's own implementation (bytes).
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

/// Validates everything a header promises before anything is believed: length field, size cap
/// (100 MB), JSON depth and duplicate keys, known dtypes, shapes (no negative, checked products),
/// offsets in order, inside the file, equal to dtype * shape, without overlap, hole or trailing
/// bytes. Scalars (shape []) and empty tensors are valid. `file` is the start of the file (8 bytes
/// and the header, or the whole file if that is shorter), `file_size` its whole size, `where` the
/// name for messages. Throws InvalidFormat, one message a rule. O(n log n) for n tensors.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file, std::uint64_t file_size,
                                           const std::string& where);

/// A mapped safetensors file. All const members may be called from any thread.
///
/// Mapped bytes are for looking; long reading goes through read(), because a file that shrinks
/// under a mapping kills the process with SIGBUS, while a read comes back short and can be
/// reported.
class SafetensorsFile {
 public:
  /// Maps the file and validates its header. Throws NotFound, Io, InvalidFormat.
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::filesystem::path& path() const;
  const SafetensorsHeader& header() const;
  /// The header's entry. Throws NotFound if there is none.
  const TensorInfo& info(const std::string& name) const;
  /// The bytes of a tensor; touching them reads the file. Their address need not be aligned to the
  /// element type. Throws NotFound if there is none.
  std::span<const std::byte> bytes(const std::string& name) const;
  /// Copies `bytes` bytes from `offset` bytes into the tensor to `out`. Throws Internal beyond the
  /// tensor's end, Io if the file has become shorter or the disk fails.
  void read(const TensorInfo& tensor, std::uint64_t offset, void* out, std::size_t bytes) const;
  /// Tells the system that a tensor's pages are no longer needed, so that resident memory stays
  /// bounded while a model streams through.
  void drop(const std::string& name) const;

 private:
  struct Mapping;
  std::unique_ptr<Mapping> mapping_;
};

/// Writes a safetensors file tensor by tensor, in the order declared, whole or not at all.
///
///   SafetensorsWriter writer(path, {{"a", DType::F64, {2, 3}}}, {{"format", "pt"}});
///   writer.append("a", data, bytes);   // may be called repeatedly for one tensor
///   writer.finish();
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    DType dtype;
    std::vector<std::int64_t> shape;
  };
  /// Throws Internal for a name used twice, a negative dimension or a size beyond 2^63, Io as
  /// AtomicFile.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<Entry> entries,
                    const std::map<std::string, std::string>& metadata = {});
  /// Throws Internal if `name` is not the tensor whose turn it is or gets too many bytes. Empty
  /// tensors need no call.
  void append(const std::string& name, const void* data, std::size_t bytes);
  /// Throws Internal if bytes are missing.
  void finish();

 private:
  std::uint64_t expected(std::size_t index) const;

  AtomicFile file_;
  std::string where_;
  std::vector<Entry> entries_;
  std::size_t current_ = 0;
  std::uint64_t in_current_ = 0;
};

}  // namespace subspace
