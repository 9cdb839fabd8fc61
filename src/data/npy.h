#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace subspace {

/// Element types that data folders use.
enum class NpyType { U8, U16, U32, I32, I64 };

/// Bytes of one element.
std::uint64_t npy_type_size(NpyType type);
/// "uint8", "uint16", "uint32", "int32" or "int64", as meta.json writes it.
const char* npy_type_name(NpyType type);

template <typename T>
concept NpyElement = std::same_as<T, std::uint8_t> || std::same_as<T, std::uint16_t> ||
    std::same_as<T, std::uint32_t> || std::same_as<T, std::int32_t> ||
    std::same_as<T, std::int64_t>;

template <NpyElement T>
constexpr NpyType npy_type_of() {
  if constexpr (std::same_as<T, std::uint8_t>) return NpyType::U8;
  if constexpr (std::same_as<T, std::uint16_t>) return NpyType::U16;
  if constexpr (std::same_as<T, std::uint32_t>) return NpyType::U32;
  if constexpr (std::same_as<T, std::int32_t>) return NpyType::I32;
  if constexpr (std::same_as<T, std::int64_t>) return NpyType::I64;
}

/// A complete, validated .npy header. `shape` has no axis for a scalar; its product is `elements`.
struct NpyHeader {
  NpyType type = NpyType::U8;
  std::vector<std::int64_t> shape;
  std::uint64_t elements = 0;
  std::uint64_t data_begin = 0;
};

/// Longest header text (bytes) and most axes accepted; NumPy writes 118 bytes for the arrays here.
inline constexpr std::uint64_t kMaxNpyHeaderBytes = 1 << 16;
inline constexpr std::size_t kMaxNpyAxes = 8;

/// Validates everything that the header of a .npy file promises before anything is believed: magic,
/// version (1.0, 2.0, 3.0), header length, the grammar of the header (a Python dictionary of
/// exactly 'descr', 'fortran_order', 'shape'), element type (NpyType, little-endian), C order, axes
/// and their checked product, alignment of the data, and that the file ends with the data.
///
/// `start` is the beginning of the file (all of it, or at least the header), `file_size` its whole
/// size, `where` the name for messages. Throws InvalidFormat or Unsupported, one message a rule.
/// Format: numpy.lib.format in NumPy's documentation.
NpyHeader parse_npy_header(std::span<const std::byte> start, std::uint64_t file_size,
                           const std::string& where);

/// A mapped .npy file. Const members may be called from any thread.
class NpyFile {
 public:
  /// Maps the file and validates its header. Throws NotFound, Io, InvalidFormat, Unsupported.
  explicit NpyFile(const std::filesystem::path& path);
  ~NpyFile();
  NpyFile(NpyFile&&) noexcept;
  NpyFile& operator=(NpyFile&&) noexcept;

  const std::filesystem::path& path() const;
  const NpyHeader& header() const;
  /// All bytes of the file, the header among them.
  std::span<const std::byte> bytes() const;
  /// The elements in C order. Throws Internal if T is not the file's type.
  template <NpyElement T>
  std::span<const T> values() const {
    expect_type(npy_type_of<T>());
    return {reinterpret_cast<const T*>(bytes().data() + header().data_begin),
            static_cast<std::size_t>(header().elements)};
  }
  /// Throws Io if the file has another size than when it was opened: touching what a shrunk file
  /// has lost would kill the process. To be called before a mapping is read; a system call.
  void check_size() const;

 private:
  void expect_type(NpyType type) const;

  struct Mapping;
  std::unique_ptr<Mapping> mapping_;
};

}  // namespace subspace
