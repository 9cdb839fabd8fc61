#include <algorithm>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace subspace {
namespace {

// Deeper than the format's three levels, so that what is too deep is reported as wrong type first.
constexpr int kMaxDepth = 8;
constexpr std::size_t kMaxDimensions = 64;

std::string quoted(const std::string& name) {
  return name.size() <= 200 ? "'" + name + "'" : "'" + name.substr(0, 200) + "...'";
}

std::string excerpt(const SortedJson& value) {
  std::string text = value.dump(-1, ' ', false, SortedJson::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

/// The messages' common beginning: file and tensor.
struct Place {
  const std::string& file;
  const std::string& tensor;
  std::string text() const { return file + ": tensor " + quoted(tensor); }
};

DType parse_dtype(const SortedJson& entry, const Place& place) {
  const auto found = entry.find("dtype");
  if (found == entry.end() || !found->is_string()) {
    fail(ErrorCode::InvalidFormat, "{}: 'dtype' is {}; expected a string", place.text(),
         found == entry.end() ? "missing" : excerpt(*found));
  }
  const auto& name = found->get_ref<const std::string&>();
  const auto dtype = dtype_from_name(name);
  if (!dtype) {
    fail(ErrorCode::InvalidFormat, "{}: unknown dtype {}; known are {}", place.text(), quoted(name),
         dtype_names());
  }
  return *dtype;
}

std::vector<std::int64_t> parse_shape(const SortedJson& entry, const Place& place) {
  const auto found = entry.find("shape");
  if (found == entry.end() || !found->is_array()) {
    fail(ErrorCode::InvalidFormat, "{}: 'shape' is {}; expected a list of whole numbers",
         place.text(), found == entry.end() ? "missing" : excerpt(*found));
  }
  if (found->size() > kMaxDimensions) {
    fail(ErrorCode::InvalidFormat, "{}: {} dimensions, more than the {} allowed", place.text(),
         found->size(), kMaxDimensions);
  }
  std::vector<std::int64_t> shape;
  shape.reserve(found->size());
  for (const SortedJson& item : *found) {
    // A negative number is an integer but not an unsigned one; one beyond 2^64 is a float.
    if (!item.is_number_unsigned() || item.get<std::uint64_t>() > INT64_MAX) {
      fail(ErrorCode::InvalidFormat,
           "{}: the shape holds {}; expected whole numbers from 0 to 2^63", place.text(),
           excerpt(item));
    }
    shape.push_back(item.get<std::int64_t>());
  }
  return shape;
}

std::uint64_t parse_size(DType dtype, std::span<const std::int64_t> shape, const Place& place) {
  std::int64_t bits = dtype_bits(dtype);
  for (const std::int64_t extent : shape) {
    if (__builtin_mul_overflow(bits, extent, &bits)) {
      fail(ErrorCode::InvalidFormat, "{}: the size of {} {} exceeds 2^63 bits", place.text(),
           dtype_name(dtype), shape_text(shape));
    }
  }
  if (bits % 8 != 0) {
    fail(ErrorCode::InvalidFormat, "{}: {} {} takes {} bits, which is no whole number of bytes",
         place.text(), dtype_name(dtype), shape_text(shape), bits);
  }
  return static_cast<std::uint64_t>(bits / 8);
}

std::pair<std::uint64_t, std::uint64_t> parse_offsets(const SortedJson& entry, const Place& place) {
  const auto found = entry.find("data_offsets");
  const bool pair = found != entry.end() && found->is_array() && found->size() == 2 &&
                    (*found)[0].is_number_unsigned() && (*found)[1].is_number_unsigned();
  if (!pair) {
    fail(ErrorCode::InvalidFormat,
         "{}: 'data_offsets' is {}; expected two whole numbers [begin, end]", place.text(),
         found == entry.end() ? "missing" : excerpt(*found));
  }
  return {(*found)[0].get<std::uint64_t>(), (*found)[1].get<std::uint64_t>()};
}

TensorInfo parse_entry(const SortedJson& entry, std::uint64_t data_begin, std::uint64_t data_size,
                       const Place& place) {
  if (!entry.is_object()) {
    fail(ErrorCode::InvalidFormat, "{}: described by {}; expected an object", place.text(),
         excerpt(entry));
  }
  for (const auto& [key, value] : entry.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      fail(ErrorCode::InvalidFormat,
           "{}: unknown field {}; expected only dtype, shape and data_offsets", place.text(),
           quoted(key));
    }
  }
  TensorInfo info;
  info.dtype = parse_dtype(entry, place);
  info.shape = parse_shape(entry, place);
  const std::uint64_t size = parse_size(info.dtype, info.shape, place);
  const auto [begin, end] = parse_offsets(entry, place);
  if (begin > end) {
    fail(ErrorCode::InvalidFormat, "{}: data_offsets [{}, {}] run backwards", place.text(), begin,
         end);
  }
  if (end > data_size) {
    fail(ErrorCode::InvalidFormat,
         "{}: its data ends at byte {} of the data section, which has only {} bytes; the file is "
         "truncated (fetch it again) or its header is wrong",
         place.text(), end, data_size);
  }
  if (end - begin != size) {
    fail(ErrorCode::InvalidFormat, "{}: {} {} takes {} bytes, but data_offsets [{}, {}] hold {}",
         place.text(), dtype_name(info.dtype), shape_text(info.shape), size, begin, end,
         end - begin);
  }
  info.begin = data_begin + begin;
  info.end = data_begin + end;
  return info;
}

/// Every byte of the data section belongs to exactly one tensor.
void check_coverage(const SafetensorsHeader& header, std::uint64_t file_size,
                    const std::string& where) {
  std::vector<const std::pair<const std::string, TensorInfo>*> order;
  order.reserve(header.tensors.size());
  for (const auto& item : header.tensors) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::uint64_t covered = header.data_begin;
  const std::string* previous = nullptr;
  for (const auto* item : order) {
    const TensorInfo& info = item->second;
    if (info.begin < covered) {
      fail(ErrorCode::InvalidFormat,
           "{}: tensors {} and {} overlap: one ends at byte {}, the other "
           "begins at byte {}",
           where, quoted(*previous), quoted(item->first), covered, info.begin);
    }
    if (info.begin > covered) {
      fail(ErrorCode::InvalidFormat, "{}: bytes {} to {} before tensor {} belong to no tensor",
           where, covered, info.begin, quoted(item->first));
    }
    covered = info.end;
    previous = &item->first;
  }
  if (covered != file_size) {
    fail(ErrorCode::InvalidFormat,
         "{}: {} bytes behind the last tensor; expected the file to end "
         "at byte {}, found {}",
         where, file_size - covered, covered, file_size);
  }
}

std::map<std::string, std::string> parse_metadata(const SortedJson& value,
                                                  const std::string& where) {
  if (!value.is_object()) {
    fail(ErrorCode::InvalidFormat, "{}: '__metadata__' is {}; expected an object of strings", where,
         excerpt(value));
  }
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) {
      fail(ErrorCode::InvalidFormat, "{}: '__metadata__' field {} is {}; expected a string", where,
           quoted(key), excerpt(text));
    }
    metadata.emplace(key, text.get<std::string>());
  }
  return metadata;
}

}  // namespace

std::int64_t TensorInfo::elements() const {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}

std::string shape_text(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file, std::uint64_t file_size,
                                           const std::string& where) {
  static_assert(std::endian::native == std::endian::little, "the format is little-endian");
  if (file_size < 8 || file.size() < 8) {
    fail(ErrorCode::InvalidFormat,
         "{}: {} bytes; a safetensors file begins with 8 bytes of header length. Fetch it again",
         where, file_size);
  }
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  if (length > kMaxHeaderBytes) {
    fail(ErrorCode::InvalidFormat,
         "{}: the header claims {} bytes, more than the {} allowed; this is no safetensors file",
         where, length, kMaxHeaderBytes);
  }
  if (length > file_size - 8 || length > file.size() - 8) {
    fail(ErrorCode::InvalidFormat,
         "{}: the header claims {} bytes, but only {} follow; the file is truncated (fetch it "
         "again)",
         where, length, std::min<std::uint64_t>(file_size, file.size()) - 8);
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8,
                              static_cast<std::size_t>(length));
  if (text.empty() || text.front() != '{') {
    fail(ErrorCode::InvalidFormat,
         "{}: the header does not begin with '{{'; this is no "
         "safetensors file",
         where);
  }
  const Json json =
      parse_json(text, where + ": header", {.max_bytes = kMaxHeaderBytes, .max_depth = kMaxDepth});

  SafetensorsHeader header;
  header.data_begin = 8 + length;
  const std::uint64_t data_size = file_size - header.data_begin;
  for (const auto& [name, entry] : json.items()) {
    if (name == "__metadata__") {
      header.metadata = parse_metadata(entry, where);
    } else {
      header.tensors.emplace(name, parse_entry(entry, header.data_begin, data_size, {where, name}));
    }
  }
  check_coverage(header, file_size, where);
  return header;
}

}  // namespace subspace
