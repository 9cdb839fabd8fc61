#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace subspace {

/// JSON values keep the order in which they were written, so that files diff well.
using Json = nlohmann::ordered_json;
/// The same without the order of writing, for objects of very many keys: an ordered object looks a
/// key up by walking all of them, which makes parsing n keys cost n^2 (a DeepSeek-V3 index has 92
/// thousand).
using SortedJson = nlohmann::json;

/// Limits on untrusted JSON text: size before parsing, depth and duplicate keys while parsing.
struct JsonLimits {
  std::size_t max_bytes = std::size_t{64} << 20;
  int max_depth = 64;
};

/// Parses one complete JSON document. `where` names the source in messages ("config.json").
/// Throws InvalidFormat: too large, too deep, duplicate key (named), trailing bytes, syntax (with
/// the byte).
Json parse_json(std::string_view text, const std::string& where, const JsonLimits& limits = {});
SortedJson parse_sorted_json(std::string_view text, const std::string& where,
                             const JsonLimits& limits = {});

/// Reads and parses a file. Throws NotFound if there is none, Io, or as parse_json.
Json read_json_file(const std::filesystem::path& path, const JsonLimits& limits = {});
/// The text of such a file, unparsed. Throws NotFound, Io, InvalidFormat (too large).
std::string read_text_file(const std::filesystem::path& path, const JsonLimits& limits = {});

/// An object of a JSON document together with the name of the place it came from, so that every
/// message about a missing or wrong field says the file and the field.
///
///   Fields config(json, "config.json");
///   int64_t heads = config.positive_int("num_attention_heads");
class Fields {
 public:
  /// Throws InvalidFormat unless `object` is a JSON object. Keeps a copy of neither.
  Fields(const Json& object, std::string where);

  const std::string& where() const { return where_; }
  const Json& json() const { return *object_; }
  /// True if the field is there and not null.
  bool has(const std::string& name) const;

  /// The field, or NotFound ("config.json: no field 'hidden_size' ..."), or InvalidValue for the
  /// wrong type or range (says what was found).
  std::int64_t positive_int(const std::string& name) const;
  std::int64_t int_in(const std::string& name, std::int64_t low, std::int64_t high) const;
  double number(const std::string& name) const;
  bool boolean(const std::string& name) const;
  std::string string(const std::string& name) const;
  std::vector<std::string> strings(const std::string& name) const;
  Fields object(const std::string& name) const;

  /// The same with a value for an absent or null field.
  std::int64_t positive_int_or(const std::string& name, std::int64_t value) const;
  double number_or(const std::string& name, double value) const;
  bool boolean_or(const std::string& name, bool value) const;
  std::string string_or(const std::string& name, const std::string& value) const;
  std::optional<Fields> object_if(const std::string& name) const;

 private:
  const Json& field(const std::string& name, const char* expected) const;
  [[noreturn]] void wrong(const std::string& name, const char* expected) const;

  const Json* object_;
  std::string where_;
};

}  // namespace subspace
