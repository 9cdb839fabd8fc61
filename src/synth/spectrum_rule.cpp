#include "synth/spectrum_rule.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "base/json.h"

namespace subspace {
namespace {

template <typename Number>
std::optional<Number> number(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::vector<double> read_list(const Json& list, const std::string& where) {
  if (!list.is_array() || list.empty()) {
    fail(ErrorCode::InvalidFormat, "{}: expected a list of singular values", where);
  }
  std::vector<double> values;
  for (const Json& item : list) {
    const double value = item.is_number() ? item.get<double>() : -1;
    if (!(value >= 0 && std::isfinite(value))) {
      fail(ErrorCode::InvalidValue, "{}: value {} is {}; expected a number, 0 or more", where,
           values.size(), item.dump());
    }
    values.push_back(value);
  }
  std::sort(values.begin(), values.end(), std::greater<>());
  while (!values.empty() && values.back() == 0) values.pop_back();
  return values;
}

}  // namespace

SpectrumRule::SpectrumRule(const std::string& text) : text_(text) {
  if (text == "gaussian") return;
  if (text.starts_with("power:")) {
    const auto power = number<double>(std::string_view(text).substr(6));
    if (power && *power >= 0 && *power <= 20) {
      kind_ = Kind::power;
      power_ = *power;
      return;
    }
  } else if (text.starts_with("rank:")) {
    const auto rank = number<std::int64_t>(std::string_view(text).substr(5));
    if (rank && *rank > 0) {
      kind_ = Kind::rank;
      rank_ = *rank;
      return;
    }
  } else if (text.ends_with(".json")) {
    kind_ = Kind::lists;
    read_lists();
    return;
  }
  fail(
      ErrorCode::Usage,
      "--spectrum {}: expected gaussian, power:P with P from 0 to 20, rank:R with R at least 1, or "
      "the path of a .json file",
      text);
}

void SpectrumRule::read_lists() {
  const Json json = read_json_file(text_);
  if (json.is_array()) {
    lists_[""] = read_list(json, text_);
    return;
  }
  if (!json.is_object() || json.empty()) {
    fail(ErrorCode::InvalidFormat,
         "{}: expected a list of singular values, or an object of such lists by (part of) a "
         "tensor's name",
         text_);
  }
  for (const auto& [part, list] : json.items()) {
    lists_[part] = read_list(list, fmt::format("{}: '{}'", text_, part));
  }
}

std::optional<std::vector<double>> SpectrumRule::values(const std::string& name, std::int64_t m,
                                                        std::int64_t n, double std) const {
  const std::int64_t smaller = std::min(m, n);
  std::vector<double> values;
  switch (kind_) {
    case Kind::gaussian:
      return std::nullopt;
    case Kind::power:
      for (std::int64_t j = 1; j <= smaller; ++j) {
        values.push_back(std::pow(static_cast<double>(j), -power_));
      }
      break;
    case Kind::rank:
      values.assign(static_cast<std::size_t>(std::min(rank_, smaller)), 1.0);
      break;
    case Kind::lists: {
      const std::pair<const std::string, std::vector<double>>* best = nullptr;
      for (const auto& entry : lists_) {
        if (name.find(entry.first) == std::string::npos) continue;
        if (best == nullptr || entry.first.size() > best->first.size()) best = &entry;
      }
      if (best == nullptr) return std::nullopt;
      if (static_cast<std::int64_t>(best->second.size()) > smaller) {
        fail(ErrorCode::InvalidValue,
             "{}: {} singular values for '{}', a matrix of [{}, {}], which has {}", text_,
             best->second.size(), name, m, n, smaller);
      }
      return best->second;
    }
  }
  double squares = 0;
  for (const double value : values) squares += value * value;
  const double norm = std * std::sqrt(static_cast<double>(m) * static_cast<double>(n));
  for (double& value : values) value *= norm / std::sqrt(squares);
  return values;
}

void SpectrumRule::check_all_used(const std::vector<std::string>& names) const {
  for (const auto& [part, values] : lists_) {
    const bool used = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return name.find(part) != std::string::npos;
    });
    if (!used) {
      fail(ErrorCode::Usage, "{}: no matrix of this model has '{}' in its name; one is called '{}'",
           text_, part, names.empty() ? "" : names.front());
    }
  }
}

}  // namespace subspace
