#include "base/json.h"

#include <cmath>
#include <fstream>
#include <functional>
#include <set>

#include "base/error.h"

namespace subspace {
namespace {

/// Enforces depth and key uniqueness while nlohmann's parser builds the value.
template <typename AnyJson>
class Guard {
 public:
  Guard(const std::string& where, const JsonLimits& limits) : where_(where), limits_(limits) {}

  bool operator()(int /*depth*/, typename AnyJson::parse_event_t event, AnyJson& parsed) {
    using Event = typename AnyJson::parse_event_t;
    switch (event) {
      case Event::object_start:
        open();
        keys_.emplace_back();
        break;
      case Event::array_start:
        open();
        break;
      case Event::object_end:
        keys_.pop_back();
        --depth_;
        break;
      case Event::array_end:
        --depth_;
        break;
      case Event::key: {
        const auto& key = parsed.template get_ref<const std::string&>();
        if (!keys_.back().insert(key).second) {
          fail(ErrorCode::InvalidFormat, "{}: the key '{}' stands twice in one object", where_,
               key.substr(0, 200));
        }
        break;
      }
      case Event::value:
        break;
    }
    return true;
  }

 private:
  void open() {
    if (++depth_ > limits_.max_depth) {
      fail(ErrorCode::InvalidFormat, "{}: JSON is nested deeper than {} levels", where_,
           limits_.max_depth);
    }
  }

  const std::string& where_;
  const JsonLimits& limits_;
  int depth_ = 0;
  std::vector<std::set<std::string>> keys_;
};

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

template <typename AnyJson>
AnyJson parse(std::string_view text, const std::string& where, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    fail(ErrorCode::InvalidFormat, "{}: {} bytes of JSON, more than the {} allowed", where,
         text.size(), limits.max_bytes);
  }
  Guard<AnyJson> guard(where, limits);
  try {
    return AnyJson::parse(text.begin(), text.end(), std::ref(guard));
  } catch (const nlohmann::json::parse_error& error) {
    fail(ErrorCode::InvalidFormat, "{}: not valid JSON at byte {}", where, error.byte);
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorCode::InvalidFormat, "{}: not valid JSON: {}", where, error.what());
  }
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where, const JsonLimits& limits) {
  return parse<Json>(text, where, limits);
}

SortedJson parse_sorted_json(std::string_view text, const std::string& where,
                             const JsonLimits& limits) {
  return parse<SortedJson>(text, where, limits);
}

std::string read_text_file(const std::filesystem::path& path, const JsonLimits& limits) {
  std::error_code status;
  if (!std::filesystem::exists(path, status)) {
    fail(ErrorCode::NotFound, "{}: no such file", path.string());
  }
  const auto size = std::filesystem::file_size(path, status);
  if (status) fail(ErrorCode::Io, "{}: cannot be read: {}", path.string(), status.message());
  if (size > limits.max_bytes) {
    fail(ErrorCode::InvalidFormat, "{}: {} bytes of JSON, more than the {} allowed", path.string(),
         size, limits.max_bytes);
  }
  std::ifstream stream(path, std::ios::binary);
  std::string text(size, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(size));
  if (!stream) fail(ErrorCode::Io, "{}: cannot be read", path.string());
  return text;
}

Json read_json_file(const std::filesystem::path& path, const JsonLimits& limits) {
  return parse_json(read_text_file(path, limits), path.string(), limits);
}

Fields::Fields(const Json& object, std::string where) : object_(&object), where_(std::move(where)) {
  if (!object.is_object()) {
    fail(ErrorCode::InvalidFormat, "{}: expected a JSON object, found {}", where_, shown(object));
  }
}

bool Fields::has(const std::string& name) const {
  const auto found = object_->find(name);
  return found != object_->end() && !found->is_null();
}

const Json& Fields::field(const std::string& name, const char* expected) const {
  const auto found = object_->find(name);
  if (found == object_->end() || found->is_null()) {
    fail(ErrorCode::NotFound, "{}: no field '{}'; expected {}", where_, name, expected);
  }
  return *found;
}

void Fields::wrong(const std::string& name, const char* expected) const {
  fail(ErrorCode::InvalidValue, "{}: field '{}' is {}; expected {}", where_, name,
       shown(object_->at(name)), expected);
}

std::int64_t Fields::int_in(const std::string& name, std::int64_t low, std::int64_t high) const {
  const std::string expected = fmt::format("a whole number from {} to {}", low, high);
  const Json& value = field(name, expected.c_str());
  if (!value.is_number_integer()) wrong(name, expected.c_str());
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX) {
    wrong(name, expected.c_str());
  }
  const auto number = value.get<std::int64_t>();
  if (number < low || number > high) wrong(name, expected.c_str());
  return number;
}

std::int64_t Fields::positive_int(const std::string& name) const {
  return int_in(name, 1, std::int64_t{1} << 40);
}

double Fields::number(const std::string& name) const {
  const Json& value = field(name, "a number");
  if (!value.is_number()) wrong(name, "a number");
  const auto number = value.get<double>();
  if (!std::isfinite(number)) wrong(name, "a finite number");
  return number;
}

bool Fields::boolean(const std::string& name) const {
  const Json& value = field(name, "true or false");
  if (!value.is_boolean()) wrong(name, "true or false");
  return value.get<bool>();
}

std::string Fields::string(const std::string& name) const {
  const Json& value = field(name, "a string");
  if (!value.is_string()) wrong(name, "a string");
  return value.get<std::string>();
}

std::vector<std::string> Fields::strings(const std::string& name) const {
  const Json& value = field(name, "a list of strings");
  if (!value.is_array()) wrong(name, "a list of strings");
  std::vector<std::string> list;
  for (const Json& item : value) {
    if (!item.is_string()) wrong(name, "a list of strings");
    list.push_back(item.get<std::string>());
  }
  return list;
}

Fields Fields::object(const std::string& name) const {
  const Json& value = field(name, "an object");
  if (!value.is_object()) wrong(name, "an object");
  return Fields(value, where_ + ": " + name);
}

std::int64_t Fields::positive_int_or(const std::string& name, std::int64_t value) const {
  return has(name) ? positive_int(name) : value;
}

double Fields::number_or(const std::string& name, double value) const {
  return has(name) ? number(name) : value;
}

bool Fields::boolean_or(const std::string& name, bool value) const {
  return has(name) ? boolean(name) : value;
}

std::string Fields::string_or(const std::string& name, const std::string& value) const {
  return has(name) ? string(name) : value;
}

std::optional<Fields> Fields::object_if(const std::string& name) const {
  if (!has(name)) return std::nullopt;
  return object(name);
}

}  // namespace subspace
