#include "nn/config_fields.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace subspace::nn {
namespace {

/// Levenshtein's distance: insertions, deletions and replacements of one letter.
std::size_t distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

ConfigFields::ConfigFields(const Json& json, const std::string& where) : fields_(json, where) {}

bool ConfigFields::has(const std::string& name) {
  known_.insert(name);
  return fields_.has(name);
}

std::int64_t ConfigFields::positive(const std::string& name) {
  known_.insert(name);
  return fields_.positive_int(name);
}

std::int64_t ConfigFields::positive_or(const std::string& name, std::int64_t value) {
  return has(name) ? positive(name) : value;
}

std::int64_t ConfigFields::count_or(const std::string& name, std::int64_t value) {
  return has(name) ? fields_.int_in(name, 0, std::int64_t{1} << 40) : value;
}

double ConfigFields::number_or(const std::string& name, double value) {
  return has(name) ? fields_.number(name) : value;
}

double ConfigFields::not_negative_or(const std::string& name, double value) {
  const double number = number_or(name, value);
  if (number < 0) contradiction(name, "expected a number from 0");
  return number;
}

bool ConfigFields::boolean_or(const std::string& name, bool value) {
  return has(name) ? fields_.boolean(name) : value;
}

std::string ConfigFields::choice_or(const std::string& name, const std::string& value,
                                    const std::set<std::string>& allowed) {
  const std::string text = has(name) ? fields_.string(name) : value;
  if (!allowed.contains(text)) {
    contradiction(name, fmt::format("expected one of {}", fmt::join(allowed, ", ")));
  }
  return text;
}

void ConfigFields::must_be(const std::string& name, const Json& value, const std::string& why) {
  if (has(name) && fields_.json().at(name) != value) {
    contradiction(name, fmt::format("expected {}: {}", value.dump(), why));
  }
}

void ConfigFields::known(const std::initializer_list<const char*>& names) {
  known_.insert(names.begin(), names.end());
}

void ConfigFields::contradiction(const std::string& name, const std::string& rest) const {
  const auto found = fields_.json().find(name);
  fail(ErrorCode::InvalidValue, "{}: field '{}' is {}; {}", where(), name,
       found == fields_.json().end() ? "absent" : found->dump(), rest);
}

std::string ConfigFields::meant(const std::string& name) const {
  std::string nearest;
  for (const std::string& other : known_) {
    if (nearest.empty() || distance(name, other) < distance(name, nearest)) nearest = other;
  }
  const bool close = distance(name, nearest) <= std::max<std::size_t>(2, name.size() / 4);
  return close ? fmt::format("did you mean '{}'?", nearest) : "";
}

void ConfigFields::finish(const std::string& model_type) const {
  for (const auto& item : fields_.json().items()) {
    if (known_.contains(item.key())) continue;
    const std::string other = meant(item.key());
    fail(ErrorCode::InvalidValue, "{}: field '{}' is not known to model_type '{}'; {}", where(),
         item.key(), model_type,
         other.empty() ? "docs/models.md lists what is; remove it, or choose another model_type"
                       : other);
  }
}

void ConfigFields::finish_object(const std::string& what, const std::string& document) const {
  for (const auto& item : fields_.json().items()) {
    if (known_.contains(item.key())) continue;
    const std::string other = meant(item.key());
    fail(ErrorCode::InvalidValue, "{}: {} has no field '{}'; {}", where(), what, item.key(),
         other.empty() ? document + " lists them" : other);
  }
}

}  // namespace subspace::nn
