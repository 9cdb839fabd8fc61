#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "data/npy.h"

namespace subspace {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";

struct TypeEntry {
  NpyType type;
  std::uint64_t size;
  const char* name;
  std::string_view descr;
};

constexpr std::array<TypeEntry, 5> kTypes = {{{NpyType::U8, 1, "uint8", "|u1"},
                                              {NpyType::U16, 2, "uint16", "<u2"},
                                              {NpyType::U32, 4, "uint32", "<u4"},
                                              {NpyType::I32, 4, "int32", "<i4"},
                                              {NpyType::I64, 8, "int64", "<i8"}}};

const TypeEntry& entry_of(NpyType type) { return kTypes[static_cast<std::size_t>(type)]; }

std::string printable(std::string_view text) {
  std::string shown;
  for (const char c : text.substr(0, 40)) shown += c >= ' ' && c <= '~' ? c : '?';
  return shown;
}

/// Reads the header's dictionary: the few forms of Python's literals that NumPy writes.
class Literal {
 public:
  Literal(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  bool accept(char wanted) {
    skip_spaces();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!accept(wanted)) wrong(fmt::format("'{}'", wanted));
  }

  std::string_view string() {
    const char quote = accept('\'') ? '\'' : '"';
    if (quote == '"') expect('"');
    const std::size_t begin = at_;
    while (at_ < text_.size() && text_[at_] != quote && text_[at_] != '\\') ++at_;
    if (at_ >= text_.size() || text_[at_] != quote) wrong("the end of a string without escapes");
    return text_.substr(begin, at_++ - begin);
  }

  bool boolean() {
    skip_spaces();
    for (const auto& [word, value] : {std::pair{"True", true}, std::pair{"False", false}}) {
      if (text_.substr(at_).starts_with(word)) {
        at_ += std::strlen(word);
        return value;
      }
    }
    wrong("True or False");
  }

  std::int64_t integer() {
    skip_spaces();
    const std::size_t begin = at_;
    std::int64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      if (__builtin_mul_overflow(value, std::int64_t{10}, &value) ||
          __builtin_add_overflow(value, std::int64_t{text_[at_] - '0'}, &value)) {
        fail(ErrorCode::InvalidFormat, "{}: an axis of the shape is beyond 2^63", where_);
      }
    }
    if (at_ == begin) wrong("a whole number, not negative");
    return value;
  }

  /// (), (3,), (3, 4) or (3, 4,); (3) is a number in Python.
  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> values;
    expect('(');
    if (accept(')')) return values;
    while (true) {
      values.push_back(integer());
      if (values.size() > kMaxNpyAxes) {
        fail(ErrorCode::InvalidFormat, "{}: more than {} axes", where_, kMaxNpyAxes);
      }
      const bool comma = accept(',');
      if (accept(')')) {
        if (!comma && values.size() == 1) wrong("',' in a shape of one axis");
        return values;
      }
      if (!comma) wrong("',' or ')'");
    }
  }

  /// Only the padding may follow: spaces, then one line feed at the very end.
  void end() {
    skip_spaces();
    if (at_ + 1 != text_.size() || text_[at_] != '\n') wrong("spaces and a line feed at the end");
  }

  [[noreturn]] void wrong(const std::string& expected) const {
    fail(ErrorCode::InvalidFormat, "{}: the .npy header has '{}' at its byte {}; expected {}",
         where_, printable(text_.substr(std::min(at_, text_.size()))), at_, expected);
  }

 private:
  void skip_spaces() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }

  std::string_view text_;
  const std::string& where_;
  std::size_t at_ = 0;
};

NpyType type_from(std::string_view descr, const std::string& where) {
  for (const TypeEntry& entry : kTypes) {
    if (entry.descr == descr) return entry.type;
  }
  fail(ErrorCode::Unsupported,
       "{}: element type '{}'; expected '|u1', '<u2', '<u4', '<i4' or '<i8'. Make the data anew "
       "with "
       "subspace.prepare",
       where, printable(descr));
}

struct Dictionary {
  std::optional<NpyType> type;
  std::optional<bool> fortran_order;
  std::optional<std::vector<std::int64_t>> shape;
};

template <typename T>
void set_once(std::optional<T>& field, T value, std::string_view key, const std::string& where) {
  if (field) fail(ErrorCode::InvalidFormat, "{}: the .npy header has '{}' twice", where, key);
  field = std::move(value);
}

Dictionary parse_dictionary(std::string_view text, const std::string& where) {
  Literal literal(text, where);
  Dictionary found;
  literal.expect('{');
  while (!literal.accept('}')) {
    const std::string_view key = literal.string();
    literal.expect(':');
    if (key == "descr") {
      set_once(found.type, type_from(literal.string(), where), key, where);
    } else if (key == "fortran_order") {
      set_once(found.fortran_order, literal.boolean(), key, where);
    } else if (key == "shape") {
      set_once(found.shape, literal.tuple(), key, where);
    } else {
      fail(ErrorCode::InvalidFormat, "{}: the .npy header has a field '{}' that the format lacks",
           where, printable(key));
    }
    if (!literal.accept(',')) {
      literal.expect('}');
      break;
    }
  }
  literal.end();
  for (const auto& [there, key] : {std::pair{found.type.has_value(), "descr"},
                                   std::pair{found.fortran_order.has_value(), "fortran_order"},
                                   std::pair{found.shape.has_value(), "shape"}}) {
    if (!there) fail(ErrorCode::InvalidFormat, "{}: the .npy header has no '{}'", where, key);
  }
  return found;
}

/// The text of the header; sets where the data begins.
std::string_view header_text(std::span<const std::byte> start, std::uint64_t file_size,
                             const std::string& where, std::uint64_t& data_begin) {
  const std::string_view bytes(reinterpret_cast<const char*>(start.data()), start.size());
  if (file_size < 10 || bytes.size() < 10 || !bytes.starts_with(kMagic)) {
    fail(ErrorCode::InvalidFormat, "{}: not a .npy file ({} bytes, beginning with '{}')", where,
         file_size, printable(bytes.substr(0, 6)));
  }
  const int major = static_cast<unsigned char>(bytes[6]);
  const int minor = static_cast<unsigned char>(bytes[7]);
  if (major < 1 || major > 3 || minor != 0) {
    fail(ErrorCode::Unsupported, "{}: .npy format {}.{}; expected 1.0, 2.0 or 3.0", where, major,
         minor);
  }
  const std::size_t fields = major == 1 ? 2 : 4;
  if (bytes.size() < 8 + fields) {
    fail(ErrorCode::InvalidFormat, "{}: ends inside its header; the file is truncated", where);
  }
  std::uint32_t length = 0;
  std::memcpy(&length, bytes.data() + 8, fields);
  if (length > kMaxNpyHeaderBytes) {
    fail(ErrorCode::InvalidFormat, "{}: a .npy header of {} bytes, more than the {} allowed", where,
         length, kMaxNpyHeaderBytes);
  }
  data_begin = 8 + fields + length;
  if (data_begin > file_size || data_begin > bytes.size()) {
    fail(ErrorCode::InvalidFormat,
         "{}: the header claims {} bytes, but the file has {}; it is truncated", where, length,
         file_size);
  }
  return bytes.substr(8 + fields, length);
}

}  // namespace

std::uint64_t npy_type_size(NpyType type) { return entry_of(type).size; }
const char* npy_type_name(NpyType type) { return entry_of(type).name; }

NpyHeader parse_npy_header(std::span<const std::byte> start, std::uint64_t file_size,
                           const std::string& where) {
  static_assert(std::endian::native == std::endian::little, "the data is little-endian");
  NpyHeader header;
  const std::string_view text = header_text(start, file_size, where, header.data_begin);
  const Dictionary found = parse_dictionary(text, where);
  if (*found.fortran_order) {
    fail(ErrorCode::Unsupported, "{}: the array is in Fortran order; expected C order", where);
  }
  header.type = *found.type;
  header.shape = *found.shape;
  const std::uint64_t size = npy_type_size(header.type);
  std::uint64_t bytes = size;
  for (const std::int64_t axis : header.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(axis), &bytes) ||
        bytes > static_cast<std::uint64_t>(INT64_MAX)) {
      fail(ErrorCode::InvalidFormat, "{}: the shape [{}] has more than 2^63 bytes", where,
           fmt::join(header.shape, ", "));
    }
  }
  header.elements = bytes / size;
  if (header.data_begin % size != 0) {
    fail(ErrorCode::Unsupported,
         "{}: the data begins at byte {}, which is no multiple of the element's {} bytes", where,
         header.data_begin, size);
  }
  if (file_size - header.data_begin != bytes) {
    fail(ErrorCode::InvalidFormat,
         "{}: {} bytes of data; the shape [{}] of {} needs {}. The file is truncated or not "
         "whole; make the data anew",
         where, file_size - header.data_begin, fmt::join(header.shape, ", "),
         npy_type_name(header.type), bytes);
  }
  return header;
}

}  // namespace subspace
