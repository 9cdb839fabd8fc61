#include "checkpoint/shard_index.h"

#include <cmath>

#include "base/error.h"
#include "base/json.h"

namespace subspace {
namespace {

bool plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
}

std::string shown(const SortedJson& value) {
  std::string text = value.dump(-1, ' ', false, SortedJson::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

std::uint64_t parse_total_size(const SortedJson& size, const std::string& where) {
  if (size.is_number_unsigned()) return size.get<std::uint64_t>();
  // Some writers computed it in floating point.
  if (size.is_number_float()) {
    const auto value = size.get<double>();
    if (value >= 0 && value < 0x1p63) return static_cast<std::uint64_t>(value);
  }
  fail(ErrorCode::InvalidFormat, "{}: metadata.total_size is {}; expected a number of bytes", where,
       shown(size));
}

}  // namespace

ShardIndex parse_shard_index(std::string_view text, const std::string& where) {
  const SortedJson json = parse_sorted_json(text, where);
  if (!json.is_object()) {
    fail(ErrorCode::InvalidFormat, "{}: expected a JSON object, found {}", where, shown(json));
  }
  const auto map = json.find("weight_map");
  if (map == json.end() || !map->is_object()) {
    fail(ErrorCode::InvalidFormat,
         "{}: 'weight_map' is {}; expected an object from tensor names to file names", where,
         map == json.end() ? "missing" : shown(*map));
  }
  if (map->empty()) fail(ErrorCode::InvalidFormat, "{}: weight_map names no tensor", where);
  ShardIndex index;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string()) {
      fail(ErrorCode::InvalidFormat, "{}: tensor '{}' is mapped to {}; expected a file name", where,
           name, shown(file));
    }
    const auto& shard = file.get_ref<const std::string&>();
    if (!plain_file_name(shard)) {
      fail(ErrorCode::InvalidFormat,
           "{}: tensor '{}' is said to be in {}; expected the plain name of a file in the same "
           "folder",
           where, name, shown(file));
    }
    index.weight_map.emplace(name, shard);
  }
  const auto metadata = json.find("metadata");
  if (metadata != json.end() && !metadata->is_null()) {
    if (!metadata->is_object()) {
      fail(ErrorCode::InvalidFormat, "{}: 'metadata' is {}; expected an object", where,
           shown(*metadata));
    }
    if (const auto size = metadata->find("total_size"); size != metadata->end()) {
      index.total_size = parse_total_size(*size, where);
    }
  }
  return index;
}

}  // namespace subspace
