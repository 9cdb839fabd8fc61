#include <set>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace subspace {
namespace {

std::uint64_t size_of(const SafetensorsWriter::Entry& entry, const std::string& where) {
  std::int64_t bits = dtype_bits(entry.dtype);
  for (const std::int64_t extent : entry.shape) {
    if (extent < 0 || __builtin_mul_overflow(bits, extent, &bits)) bits = -1;
    if (bits < 0) break;
  }
  if (bits < 0 || bits % 8 != 0) {
    fail(ErrorCode::Internal, "{}: tensor '{}' cannot be written with the shape {} of {}", where,
         entry.name, shape_text(entry.shape), dtype_name(entry.dtype));
  }
  return static_cast<std::uint64_t>(bits / 8);
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<Entry> entries,
                                     const std::map<std::string, std::string>& metadata)
    : file_(path), where_(path.string()), entries_(std::move(entries)) {
  Json header = Json::object();
  if (!metadata.empty()) {
    Json& object = header["__metadata__"] = Json::object();
    for (const auto& [key, value] : metadata) object[key] = value;
  }
  std::set<std::string> seen = {"__metadata__"};
  std::uint64_t at = 0;
  for (const Entry& entry : entries_) {
    if (!seen.insert(entry.name).second) {
      fail(ErrorCode::Internal, "{}: the tensor name '{}' is used twice", where_, entry.name);
    }
    const std::uint64_t end = at + size_of(entry, where_);
    Json object = Json::object();
    object["dtype"] = dtype_name(entry.dtype);
    object["shape"] = entry.shape;
    object["data_offsets"] = {at, end};
    // The ordered object looks a key up by walking all of them; a checked push keeps this linear.
    header.get_ref<Json::object_t&>().emplace_back(entry.name, std::move(object));
    at = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // data starts aligned, as the format's writers do
  const std::uint64_t length = text.size();
  file_.write(&length, sizeof length);
  file_.write(text);
}

std::uint64_t SafetensorsWriter::expected(std::size_t index) const {
  return size_of(entries_[index], where_);
}

void SafetensorsWriter::append(const std::string& name, const void* data, std::size_t bytes) {
  while (current_ < entries_.size() && entries_[current_].name != name &&
         in_current_ == expected(current_)) {
    ++current_;
    in_current_ = 0;
  }
  if (current_ == entries_.size() || entries_[current_].name != name) {
    fail(ErrorCode::Internal, "{}: data for tensor '{}' came when '{}' was due", where_, name,
         current_ == entries_.size() ? "nothing more" : entries_[current_].name);
  }
  const std::uint64_t left = expected(current_) - in_current_;
  if (bytes > left) {
    fail(ErrorCode::Internal, "{}: tensor '{}' was given {} bytes when {} were left", where_, name,
         bytes, left);
  }
  file_.write(data, bytes);
  in_current_ += bytes;
}

void SafetensorsWriter::finish() {
  for (; current_ < entries_.size(); ++current_, in_current_ = 0) {
    if (in_current_ != expected(current_)) {
      fail(ErrorCode::Internal, "{}: tensor '{}' has {} of its {} bytes", where_,
           entries_[current_].name, in_current_, expected(current_));
    }
  }
  file_.commit();
}

}  // namespace subspace
