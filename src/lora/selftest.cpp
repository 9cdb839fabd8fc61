#include "lora/selftest.h"

#include <algorithm>
#include <cmath>

#include "lora/selftest_cases.h"

namespace subspace {

const std::vector<Property>& properties() {
  static const std::vector<Property> all = [] {
    std::vector<Property> out;
    for (auto& part :
         {selftest::term_properties(), selftest::model_properties(), selftest::metric_properties(),
          selftest::composition_properties(), selftest::loader_properties()}) {
      out.insert(out.end(), part.begin(), part.end());
    }
    std::sort(out.begin(), out.end(), [](const Property& a, const Property& b) {
      return std::stoi(a.id.substr(1)) < std::stoi(b.id.substr(1));
    });
    return out;
  }();
  return all;
}

PropertyResult check(const Property& property, std::int64_t cases, std::uint64_t first_seed) {
  PropertyResult result{&property, 0, cases, false};
  for (std::int64_t i = 0; i < cases; ++i) {
    const double error = property.error(first_seed + static_cast<std::uint64_t>(i));
    // NaN compares false with everything and must not pass for small, nor be forgotten.
    if (!(error <= result.error)) result.error = error;
    if (std::isnan(error)) break;
  }
  result.passed = result.error <= property.tolerance;
  return result;
}

}  // namespace subspace
