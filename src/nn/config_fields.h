#pragma once

#include <set>
#include <string>

#include "base/json.h"

namespace subspace::nn {

/// The fields of a configuration, which remembers those that were asked for: whatever is left at
/// the end is not a field of this architecture.
class ConfigFields {
 public:
  ConfigFields(const Json& json, const std::string& where);

  const Fields& fields() const { return fields_; }
  const std::string& where() const { return fields_.where(); }
  bool has(const std::string& name);

  std::int64_t positive(const std::string& name);
  std::int64_t positive_or(const std::string& name, std::int64_t value);
  /// From zero.
  std::int64_t count_or(const std::string& name, std::int64_t value);
  double number_or(const std::string& name, double value);
  /// Throws InvalidValue below zero.
  double not_negative_or(const std::string& name, double value);
  bool boolean_or(const std::string& name, bool value);
  /// One of `allowed`; `value` if absent.
  std::string choice_or(const std::string& name, const std::string& value,
                        const std::set<std::string>& allowed);

  /// Throws InvalidValue unless the field is absent or has this value; `why` ends the message.
  void must_be(const std::string& name, const Json& value, const std::string& why);
  /// Read by somebody else, or of no meaning to the model.
  void known(const std::initializer_list<const char*>& names);
  /// "config.json: field 'x' is 3, " + rest. Throws InvalidValue.
  [[noreturn]] void contradiction(const std::string& name, const std::string& rest) const;

  /// Throws InvalidValue for the first field that nobody asked for, with the nearest known name.
  void finish(const std::string& model_type) const;
  /// The same for what is no model: "a sweep has no field 'x'", and the document that lists them.
  void finish_object(const std::string& what, const std::string& document) const;

 private:
  /// The known name nearest to `name`, if it is near enough to be meant.
  std::string meant(const std::string& name) const;

  Fields fields_;
  std::set<std::string> known_;
};

}  // namespace subspace::nn
