#include <charconv>
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "cli/commands.h"

namespace subspace {

CLI::Validator whole_from(std::int64_t least) {
  return CLI::Validator(
      [least](const std::string& text) -> std::string {
        std::int64_t value = 0;
        const char* last = text.data() + text.size();
        const auto [end, error] = std::from_chars(text.data(), last, value);
        if (error == std::errc() && end == last && value >= least) return "";
        return fmt::format("'{}'; expected a whole number from {}", text, least);
      },
      fmt::format("from {}", least));
}

CLI::Validator above_zero() {
  return CLI::Validator(
      [](const std::string& text) -> std::string {
        char* end = nullptr;
        const double value = std::strtod(text.c_str(), &end);
        if (end != text.c_str() && *end == '\0' && std::isfinite(value) && value > 0) return "";
        return fmt::format("'{}'; expected a number above 0", text);
      },
      "above 0");
}

}  // namespace subspace
